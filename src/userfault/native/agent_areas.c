/* SPDX-License-Identifier: Apache-2.0 */
/* What can be seen of mappings: /proc/PID/maps, or PROCMAP_QUERY, and smaps. */
#include "agent.h"
#include "uapi.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct procmap {
	uint64_t size, query_flags, query_addr, vma_start, vma_end, vma_flags, vma_page_size, vma_offset, inode;
	uint32_t dev_major, dev_minor, vma_name_size, build_id_size;
	uint64_t vma_name_addr, build_id_addr;
};

#define PROCMAP_QUERY _IOWR('f', 17, struct procmap)
#define COVERING_OR_NEXT 0x10

int agent_has_procmap_query(int maps)
{
	struct procmap q = {.size = sizeof(q), .query_flags = COVERING_OR_NEXT};

	return !ioctl(maps, PROCMAP_QUERY, &q) || errno != ENOTTY;
}

/* The lines of /proc/PID/maps that overlap the window, in flags as PROCMAP_QUERY gives them. */
static void read_maps(struct agent *a, int p, struct header *out)
{
	static char text[1 << 18];
	uint64_t base = a->base, end = a->base + a->pages * PAGE;
	ssize_t got, length = 0;

	while ((got = pread(a->maps[p], text + length, sizeof(text) - 1 - (size_t)length, length)) > 0)
		length += got;
	if (got < 0 || length == sizeof(text) - 1)
		agent_give_up("/proc/PID/maps");
	text[length] = 0;
	for (char *line = text; *line && out->vmas < VMAS; line = strchr(line, '\n') + 1) {
		uint64_t first = strtoull(line, &line, 16), last = strtoull(line + 1, &line, 16);

		if (first < end && last > base)
			out->vma[out->vmas++] = (struct vma){(uint32_t)((int64_t)(first - base) / PAGE),
							     (uint32_t)((int64_t)(last - base) / PAGE),
							     (line[1] == 'r') | (line[2] == 'w') << 1 | (line[3] == 'x') << 2, 0};
	}
}

void agent_observe_vmas(struct agent *a, int p, struct header *out)
{
	uint64_t at = a->base, end = a->base + a->pages * PAGE;

	out->vmas = 0;
	if (!a->procmap_query) {
		read_maps(a, p, out);
		return;
	}
	while (out->vmas < VMAS) {
		struct procmap q = {.size = sizeof(q), .query_flags = COVERING_OR_NEXT, .query_addr = at};

		if (ioctl(a->maps[p], PROCMAP_QUERY, &q)) {
			if (errno != ENOENT)
				agent_give_up("PROCMAP_QUERY");
			break;
		}
		if (q.vma_start >= end)
			break;
		out->vma[out->vmas++] = (struct vma){(uint32_t)((q.vma_start - a->base) / PAGE),
						     (uint32_t)((q.vma_end - a->base) / PAGE), (uint32_t)q.vma_flags, 0};
		at = q.vma_end;
		if (at >= end)
			break;
	}
}

static const char vm_flags[][4] = {"rd", "wr", "ex", "dc", "lo", "lf", "um", "uw", "hg", "nh", "wf", "dd", "ac", "mg"};

static uint32_t flags_of(const char *line)
{
	uint32_t flags = 0;

	for (; *line; line += 3)
		for (unsigned i = 0; i < sizeof(vm_flags) / sizeof(vm_flags[0]); i++)
			if (!strncmp(line, vm_flags[i], 2))
				flags |= 1u << i;
	return flags;
}

/* A line of smaps, of a VMA in the window. */
static void read_field(const char *line, struct area *out)
{
	unsigned long kilobytes;

	if (!strncmp(line, "VmFlags: ", 9))
		out->flags = flags_of(line + 9);
	else if (sscanf(line, "Rss: %lu", &kilobytes) == 1)
		out->rss = (uint32_t)kilobytes / (PAGE / 1024);
	else if (sscanf(line, "Swap: %lu", &kilobytes) == 1)
		out->swap = (uint32_t)kilobytes / (PAGE / 1024);
	else if (sscanf(line, "AnonHugePages: %lu", &kilobytes) == 1)
		out->huge = (uint32_t)kilobytes / (PAGE / 1024);
	else if (sscanf(line, "LazyFree: %lu", &kilobytes) == 1)
		out->lazy = (uint32_t)kilobytes / (PAGE / 1024);
	else if (sscanf(line, "Locked: %lu", &kilobytes) == 1)
		out->locked = (uint32_t)kilobytes;
}

/* smaps in the order of addresses, no further than the window reaches. */
void agent_observe_areas(struct agent *a, int p, struct header *out)
{
	static char text[1 << 16];
	uint64_t base = a->base, end = a->base + a->pages * PAGE;
	size_t kept = 0;
	int inside = 0;
	ssize_t got;

	lseek(a->smaps[p], 0, SEEK_SET);
	while ((got = read(a->smaps[p], text + kept, sizeof(text) - 1 - kept)) > 0) {
		char *line = text, *stop;

		text[kept += (size_t)got] = 0;
		for (; (stop = strchr(line, '\n')); line = stop + 1) {
			unsigned long first, last;

			*stop = 0;
			/* Names of fields begin with a capital letter. */
			if (*line < 'A' || *line > 'Z') {
				if (sscanf(line, "%lx-%lx", &first, &last) != 2)
					agent_give_up("smaps");
				if (first >= end)
					return;
				inside = last > base && out->areas < VMAS;
				if (inside)
					memset(&out->area[out->areas++], 0, sizeof(struct area));
			} else if (inside) {
				read_field(line, &out->area[out->areas - 1]);
			}
		}
		kept = strlen(line);
		memmove(text, line, kept + 1);
	}
}
