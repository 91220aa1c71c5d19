"""The constants of `layout.py` for compiled code. tests/ipc/test_layout.py compares the two files."""

cdef enum:
    PAGE_SIZE = 4096
    LINE_SIZE = 64
    LAYOUT_VERSION = 1

    # Channel segment; who writes each word is in layout.py.
    REQUEST_HEAD_OFFSET = 0x100
    REQUEST_TAIL_OFFSET = 0x140
    REPLY_HEAD_OFFSET = 0x180
    REPLY_TAIL_OFFSET = 0x1C0
    WORKER_BELL_OFFSET = 0x200
    WORKER_SLEEPING_OFFSET = 0x240
    SLOTS_HIGH_OFFSET = 0x280
    CLOSED_OFFSET = 0x2C0
    DRAINED_OFFSET = 0x2C4
    TALLY_OFFSET = 0x300
    TALLY_SIZE = 0xD00
    SLOTS_OFFSET = 0x1000
    SLOT_SIZE = 16
    SLOT_COUNT = 1024
    RINGS_OFFSET = 0x5000
    RING_SIZE_MIN = 4096
    RING_SIZE_MAX = 0x40000000

    # Doorbell segment.
    BELL_WORD_OFFSET = 0x00
    BELL_SLEEPING_OFFSET = 0x40
    BELL_OWNER_OFFSET = 0x80
    BELL_RINGER_OFFSET = 0xC0
    BELL_SEGMENT_SIZE = 4096

    # A message on a ring.
    MESSAGE_HEADER_SIZE = 8
    MESSAGE_CHECK = 0x4F43434D
