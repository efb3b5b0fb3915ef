"""The running kernel, typed. No policy: calls answer with their errno as a value, and what they do is the kernel's business.

Nothing is re-exported: `userfaultfd` has `Userfault`, `memory` has `Mapping` and the calls that change memory, `snapshot` and `pagemap`
what can be seen, `remap` the seed's calls, `rmap` the reverse map, `machine` the settings, `probe` what there is. See docs/kernel.md.
"""
