"""Pointers of Git LFS: the small texts that stand in place of large files in a clone without LFS."""

ADVICE = "a Git LFS pointer, not the file; fetch the file with: git lfs pull"
_START = b"version https://git-lfs.github.com/spec/v"


def is_pointer(content: bytes) -> bool:
    """Whether a file's content, or its first 64 bytes, is a pointer."""
    return content.startswith(_START)
