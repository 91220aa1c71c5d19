FORMAT_VERSION: int
FORMATS_READ: tuple[int, ...]
MAGIC: bytes
HEADER_SIZE: int
