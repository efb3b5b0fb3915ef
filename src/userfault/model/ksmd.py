"""mm/ksm.c: what ksmd does in a whole scan, for sequential runs: which pages become one, and which of them stays.

A whole scan depends on nothing but memory and what the scans before it left: address spaces come in the order in which they were made,
and addresses in theirs. ksm.py has the steps that race.
"""

from __future__ import annotations

from .catalogue import modelled
from .era import era
from .errno import EAGAIN
from .ksm import append_place, break_ksm, forget_stable_node, ksm_make_stable, ksm_merge, lock_small, remove_place
from .locks import unlock_page
from .mm_types import PmdKind, PteKind, mm_struct, page, stable_node, vm
from .mmap import find_vma
from .page_flags import PageAnon, PageKsm, page_mapped
from .pgtable import pmd_offset, pte_offset
from .slab import compound_head, get_page, nth_page, put_page
from .user import page_bytes

PAGE = 4096
SCANS = 12
"""After so many nothing changes any more: a checksum is taken, pages meet, and what was passed before they met follows. Of huge pages
with zeroes one is split in each, as what is left of its first zeroes, in the unstable tree, bars the way to those behind."""


class Item:
    """ksm_rmap_item: an address that was scanned. checksum: the page's contents at the last look. node: what it was merged to."""

    def __init__(self, mm: mm_struct, addr: int) -> None:
        self.mm, self.addr = mm, addr
        self.checksum: bytes | None = None
        self.node: stable_node | None = None


class Ksmd:
    """ksm_scan and its trees. Trees are by contents: their order has no effect."""

    def __init__(self) -> None:
        self.items: dict[mm_struct, dict[int, Item]] = {}
        """Of each address space, in the order of mm slots: every one has some mergeable area, so that it keeps its slot."""
        self.stable: dict[bytes, list[stable_node]] = {}
        """Nodes of KSM pages by contents. More than one: a chain, the newest first."""
        self.merged: dict[int, int] = {}
        """rmap_hlist_len of a node, by its identity."""
        self.left: list[Item] = []
        self.changed = False
        """Did the last scan do anything, or try to?"""

    def enter(self, mm: mm_struct) -> None:
        """__ksm_enter, while no scan is under way: behind all others."""
        self.items[mm] = {}

    def exit(self, mm: mm_struct) -> None:
        """__ksm_exit: the next scan begins with what is left of it."""
        self.left += self.items.pop(mm).values()

    def run(self) -> None:
        """As many scans as it takes."""
        for _ in range(SCANS):
            self.changed = False
            self.scan()
            if not self.changed:
                return

    @modelled(
        "mm/ksm.c",
        function="scan_get_next_rmap_item",
        versions="v6.18",
        section="C.17",
        omits="slots without a mergeable area, smart_scan (v6.7)",
    )
    def scan(self) -> None:
        """One scan of everything."""
        for item in self.left:
            self.detach(item)
        self.left = []
        unstable: dict[bytes, tuple[mm_struct, int, Item]] = {}
        for mm, items in self.items.items():
            before = sorted(items)
            for addr in mergeable(mm):
                p = anonymous_page(mm, addr)
                if p is None:
                    continue
                while before and before[0] < addr:
                    self.detach(items.pop(before.pop(0)))
                if before and before[0] == addr:
                    before.pop(0)
                self.cmp_and_merge_page(mm, addr, p, items.setdefault(addr, Item(mm, addr)), unstable)
            for addr in before:
                self.detach(items.pop(addr))

    @modelled(
        "mm/ksm.c",
        versions="v6.18",
        section="C.17",
        omits="NUMA nodes, the zero page in place of pages of zeroes (use_zero_pages), max_page_sharing, unequal contents of one checksum, "
        "chains that change their order when a search for other contents passes them; that contents wait a scan more which lie behind "
        "an entry of the unstable tree that is no page any more",
        errs="false alarm",
    )
    def cmp_and_merge_page(
        self,
        mm: mm_struct,
        addr: int,
        p: page,
        item: Item,
        unstable: dict[bytes, tuple[mm_struct, int, Item]],
    ) -> None:
        p.data = contents = page_bytes(p)
        kpage: page | None = None
        node = self.node_of(p)
        if node is not None:
            if item.node is node:
                return
            kpage = p
        else:
            self.detach(item)
            if item.checksum != contents:
                self.changed = True
                item.checksum = contents
                return
            kpage = self.stable_tree_search(contents)
        self.detach(item)
        if kpage is not None:
            if kpage is p or merge(mm, addr, p, kpage):
                self.attach(item, kpage)
            return
        if contents not in unstable:
            unstable[contents] = mm, addr, item
            return
        self.changed = True
        other_mm, other_addr, other = unstable[contents]
        tree_page = anonymous_page(other_mm, other_addr)
        if tree_page is None:
            # The zero page took its place, when it was split off.
            return
        # A page that a fork shares is not replaced by itself.
        if tree_page is p:
            return
        if p.compound and compound_head(tree_page) is compound_head(p):
            # With a reference to each part it can't be split; afterwards it is.
            get_page(p)
            if lock_small(p):
                unlock_page(p)
            put_page(p)
            return
        if ksm_make_stable(mm, addr) == -EAGAIN:
            return
        if not merge(other_mm, other_addr, tree_page, p):
            self.forget(item)
            forget_stable_node(p)
            break_ksm(mm, addr)
            return
        del unstable[contents]
        made = p.mapping
        assert isinstance(made, stable_node)
        self.merged[id(made)] = 0
        self.stable.setdefault(contents, []).insert(0, made)
        self.attach(other, p)
        self.attach(item, p)

    def stable_tree_search(self, contents: bytes) -> page | None:
        """A KSM page with these contents that somebody was merged to: of a chain the first, which others then find first."""
        alive = self.stable[contents] = [node for node in self.stable.get(contents, ()) if has_page(node)]
        for at, node in enumerate(alive):
            if self.merged[id(node)] > 0:
                alive.insert(0, alive.pop(at))
                return node.page
        return None

    def node_of(self, p: page) -> stable_node | None:
        """Its node in the stable tree. A KSM page has none if nobody could be merged to it, and a fork shares it."""
        return p.mapping if isinstance(p.mapping, stable_node) and id(p.mapping) in self.merged else None

    def attach(self, item: Item, kpage: page) -> None:
        """stable_tree_append, also where the page was mapped before."""
        node = kpage.mapping
        assert isinstance(node, stable_node)
        self.changed = True
        item.node = node
        self.merged[id(node)] += 1
        vma = find_vma(item.mm, item.addr)
        assert vma is not None
        append_place(node, item.mm, item.addr, vma.anon_vma)

    def detach(self, item: Item) -> None:
        """remove_rmap_item_from_tree."""
        if item.node is not None:
            self.merged[id(item.node)] -= 1
            remove_place(item.node, item.mm, item.addr)
            item.node = None
            self.forget(item)

    def forget(self, item: Item) -> None:
        """From v7.3 on the place of the checksum is that of the page's index, while the item is in the stable tree."""
        if era.ksmd_forgets_checksums:
            item.checksum = None

    @modelled(
        "mm/ksm.c",
        function="unmerge_and_remove_all_rmap_items",
        versions="v6.18",
        section="C.17",
        omits="that it ends at the first node, in the tree's order, whose page somebody maps: the others stay as they are",
        errs="false alarm",
    )
    def unmerge(self) -> None:
        """Every KSM page of a mergeable area is copied, and what scans left is forgotten, but for the KSM pages that others map."""
        for mm, items in self.items.items():
            for addr in mergeable(mm):
                break_ksm(mm, addr)
            for item in items.values():
                self.detach(item)
            items.clear()
        for item in self.left:
            self.detach(item)
        self.left = []
        for contents, nodes in self.stable.items():
            kept = self.stable[contents] = [node for node in nodes if has_page(node) and page_mapped(node.page)]
            for node in nodes:
                if node not in kept:
                    del self.merged[id(node)]
                    if has_page(node):
                        # Somebody holds it, or the swap cache has it.
                        forget_stable_node(node.page)


def has_page(node: stable_node) -> bool:
    """ksm_get_folio: is the node's page still a page, and the node's?"""
    return node.page.allocated and node.page.mapping is node


def merge(mm: mm_struct, addr: int, p: page, kpage: page) -> bool:
    """try_to_merge_with_ksm_page: map `kpage` in place of `p`. Of a KSM page nobody knows where it is mapped (page_address_in_vma)."""
    return not PageKsm(p) and ksm_merge(mm, addr, kpage) == 0


def mergeable(mm: mm_struct) -> list[int]:
    """The addresses of the pages of mergeable areas."""
    areas = [vma for vma in mm.mmap if vma.vm_flags & vm.MERGEABLE and vma.anon_vma is not None]
    return [addr for vma in areas for addr in range(vma.vm_start, vma.vm_end, PAGE)]


def anonymous_page(mm: mm_struct, addr: int) -> page | None:
    pmdp = pmd_offset(mm, addr)
    pmd = pmdp.pmd
    if pmd.kind == PmdKind.HUGE:
        return nth_page(pmd.page, addr // PAGE - pmdp.first_page)
    if pmd.kind != PmdKind.TABLE:
        return None
    pte = pte_offset(pmd.table, addr).pte
    if pte.kind != PteKind.PRESENT or pte.special or not PageAnon(pte.page):
        return None
    return pte.page
