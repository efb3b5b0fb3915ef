// Which sources this library was built of, so that a library of others is not taken for it.
#include <stdint.h>

#ifndef UF_SOURCE_BYTES
#define UF_SOURCE_BYTES 0 // built by hand: not known
#endif

__attribute__((visibility("default"))) uint64_t uf_source_bytes(void) { return UF_SOURCE_BYTES; }
