"""Memory that is paged in user space: regions, sources, eviction, dirty tracking."""
