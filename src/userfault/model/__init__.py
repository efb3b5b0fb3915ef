"""What the kernel does: plain functions over plain structs, in the kernel's names."""
