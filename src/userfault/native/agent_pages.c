/* SPDX-License-Identifier: Apache-2.0 */
/* What can be seen of pages, and which of them are the same. */
#include "agent.h"
#include "uapi.h"
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* A page's contents in one word; 0 for a page of zeroes. */
EXPORT uint64_t uf_hash_page(const void *page)
{
	const uint64_t *word = page;
	uint64_t lane[4] = {0, 0, 0, 0}, any = 0;

	/* Most of a huge page: no multiplications, and several words at once. */
	for (int i = 0; i < PAGE / 8; i++)
		any |= word[i];
	if (!any)
		return 0;
	for (int i = 0; i < PAGE / 8; i += 4)
		for (int k = 0; k < 4; k++)
			lane[k] = (lane[k] ^ word[i + k]) * 0x9e3779b97f4a7c15u + (lane[k] >> 29);
	return lane[0] ^ (lane[1] * 3) ^ (lane[2] * 5) ^ (lane[3] * 7);
}

enum { MAX_PAGES = 8192, MARKER_TYPES = 20, PFN_BITS = 55 };
static uint64_t entry[MAX_PAGES], count[MAX_PAGES], flags[MAX_PAGES];
static struct page_region region[MAX_PAGES];

/* The bits of a word, from the lowest: what pagemap says (6), PAGEMAP_SCAN (9), kpagecount (8), kpageflags (10), class. */
static const int pagemap_bits[] = {63, 62, 61, 58, 57, 56};
static const int flag_bits[] = {12, 34, 22, 15, 16, 21, 24, 13};

static uint64_t pfn_of(uint64_t page)
{
	return entry[page] & ((1ull << PFN_BITS) - 1);
}

static void observe_pages(struct agent *a, int p, uint64_t *word, uint64_t *content)
{
	uint64_t n = a->pages, base = a->base, i, k;
	struct pm_scan_arg scan = {.size = sizeof(scan), .start = base, .end = base + n * PAGE, .vec = (uint64_t)region,
				.vec_len = MAX_PAGES, .return_mask = a->categories};
	long found = 0;

	if (pread(a->pagemap[p], entry, n * 8, (off_t)(base / PAGE * 8)) != (ssize_t)(n * 8))
		memset(entry, 0, sizeof(entry));
	memset(content, 0, n * 8);
	for (i = 0; i < n; i++) {
		/* Neighbours are alike, mostly. */
		if (i && (entry[i] ^ entry[i - 1]) >> PFN_BITS == 0) {
			word[i] = word[i - 1];
			continue;
		}
		for (k = 0, word[i] = 0; k < 6; k++)
			word[i] |= (entry[i] >> pagemap_bits[k] & 1) << k;
	}
	/* It was tried before: a failure now would look like pages without categories. */
	if (a->categories && (found = ioctl(a->pagemap[p], PAGEMAP_SCAN, &scan)) < 0)
		agent_give_up("PAGEMAP_SCAN");
	for (long r = 0; r < found; r++)
		for (i = (region[r].start - base) / PAGE; i < (region[r].end - base) / PAGE; i++)
			word[i] |= (region[r].categories & 0x1ff) << 6;
	for (i = 0; i < n; i = k) {
		uint64_t pfn = pfn_of(i), step, length, shown = 0;

		k = i + 1;
		if (!(entry[i] >> 63))
			continue;
		/* Pages that are neighbours, or the zero page again and again. */
		step = k == n || pfn_of(k) != pfn;
		while (k < n && entry[k] >> 63 && pfn_of(k) == pfn + step * (k - i))
			k++;
		length = step ? (k - i) * 8 : 8;
		if (pread(a->kpagecount, count, length, (off_t)(pfn * 8)) != (ssize_t)length ||
		    pread(a->kpageflags, flags, length, (off_t)(pfn * 8)) != (ssize_t)length)
			agent_give_up("/proc/kpagecount or kpageflags");
		for (uint64_t at = i, from = 0; at < k; at++, from += step) {
			if (at == i || count[from] != count[from - step] || flags[from] != flags[from - step]) {
				shown = (count[from] > 255 ? 255 : count[from]) << 15;
				for (uint64_t bit = 0; bit < 8; bit++)
					shown |= (flags[from] >> flag_bits[bit] & 1) << (23 + bit);
			}
			word[at] |= shown;
		}
	}
}

/* What a process may do with a page, as PROT_*. */
static int allowed(const struct header *vmas, uint64_t page)
{
	for (uint32_t v = 0; v < vmas->vmas; v++)
		if (vmas->vma[v].first <= page && page < vmas->vma[v].last)
			return vmas->vma[v].flags & 7;
	return 0;
}

static void observe_contents(struct agent *a, int p, const struct header *vmas, uint64_t *content, uint64_t first,
			     uint64_t last)
{
	static char copy[PAGE];

	for (uint64_t i = first; i < last; i++) {
		void *page = (void *)(a->base + i * PAGE);
		int may;

		/* A read of a present page changes nothing but the accessed bit. */
		if (!(entry[i] >> 63))
			continue;
		may = p ? allowed(vmas, i) : 0;
		content[i] = 1;
		if (p == 0) {
			content[i] = agent_hash_own(page);
		} else if (may & PROT_READ) {
			/* Not process_vm_readv, which pins the page, and so gives a shared one its own copy. */
			if (pread(a->mem[p], copy, PAGE, (off_t)page) != PAGE)
				agent_give_up("/proc/PID/mem");
			content[i] = uf_hash_page(copy);
		} else if (may) {
			/* The CPU reads what may be written only; kernels differ in whether /proc/PID/mem does (proc_mem.force_override). */
			a->look = (uint64_t)page;
			agent_in_process(a, p, LOOK);
			content[i] = a->look;
		}
	}
}

/* Which entries name the same page or the same swap slot: the class is 1 + the first place where it is seen. */
static uint64_t seen_key[4 * MAX_PAGES];
static uint32_t seen_at[4 * MAX_PAGES];
static uint64_t seen_epoch[4 * MAX_PAGES], epoch;

static void classify(uint64_t *word, uint64_t n, uint64_t offset)
{
	for (uint64_t i = 0; i < n; i++) {
		uint64_t key, at;

		if (!(entry[i] >> 62))
			continue;
		/* A marker is no swap slot: its type is beyond the types of swap devices. */
		if (!(entry[i] >> 63) && (entry[i] & 31) >= MARKER_TYPES)
			continue;
		key = pfn_of(i) << 2 | entry[i] >> 62;
		at = key * 0x9e3779b97f4a7c15u >> 49;
		while (seen_epoch[at] == epoch && seen_key[at] != key)
			at = (at + 1) & (4 * MAX_PAGES - 1);
		if (seen_epoch[at] != epoch) {
			seen_epoch[at] = epoch;
			seen_key[at] = key;
			seen_at[at] = (uint32_t)(offset + i + 1);
		}
		word[i] |= (uint64_t)seen_at[at] << 40;
	}
}

void agent_observe(struct agent *a, uint64_t n, char *record)
{
	struct record *head = (struct record *)record;
	uint64_t each = sizeof(struct header) + a->pages * 16, live = 0;
	uint64_t slice = a->contents ? a->contents : a->pages;
	uint64_t first = a->contents ? n * slice % a->pages : 0;

	epoch++;
	for (int p = 0; p < PROCESSES; p++) {
		struct header *out = (struct header *)(record + sizeof(*head) + live * each);
		uint64_t *word = (uint64_t *)(out + 1);

		if (a->pid[p] <= 0)
			continue;
		out->process = (uint32_t)p;
		observe_pages(a, p, word, word + a->pages);
		agent_observe_vmas(a, p, out);
		out->areas = 0;
		if (a->areas && (n % a->areas == a->areas - 1 || n + 1 == a->ops))
			agent_observe_areas(a, p, out);
		observe_contents(a, p, out, word + a->pages, first,
				 first + slice < a->pages ? first + slice : a->pages);
		classify(word, a->pages, live * a->pages);
		live++;
	}
	head->live = live;
	head->messages = a->messages;
	memcpy(head->message, a->message, a->messages * sizeof(struct message));
	a->messages = 0;
}
