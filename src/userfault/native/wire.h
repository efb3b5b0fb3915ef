// The messages of paging/wire.py.
#pragma once
#include "pager.h"

enum { START = 1, READY, FILL, READ, WRITE_BACK, FLUSH, ANSWER_DONE, DATA, ERROR };
#define WIRE_MAGIC 0x746c756166727375ull // "usrfault"
#define WIRE_VERSION 1
#define WRITE_PROTECT 1
#define BACKGROUND 4

typedef struct {
    u32 kind, id;
    u64 offset, address, length;
    u32 flags;
    i32 status;
} header;
_Static_assert(sizeof(header) == 40, "the wire's header");
