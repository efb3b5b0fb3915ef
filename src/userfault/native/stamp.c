// Which sources this library was built of, so that a library of others is not taken for it.
#include <stdint.h>

#ifndef UF_SOURCES
#define UF_SOURCES 0 // built by hand: not known
#endif

__attribute__((visibility("default"))) uint32_t uf_sources(void) { return UF_SOURCES; }
