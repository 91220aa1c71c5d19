"""A doorbell with a value to wait for, driven from Python."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer

from ..ipc._atomics cimport cpu_relax, i64, load_acquire_u64, load_relaxed_u32, store_release_u64, u8, u32, u64
from ..ipc._doorbell cimport Waiter, doorbell_ring, doorbell_wait, waiter_init


cdef struct Target:
    void *value             # u64 in shared memory
    u64 wanted


cdef bint target_reached(void *context) noexcept nogil:
    cdef Target *target = <Target *>context
    # Acquire: pairs with the release in Bell.publish.
    return load_acquire_u64(target.value) >= target.wanted


cdef class Bell:
    """One doorbell with a u64 that counts up, over a writable buffer: word at offset, sleeping flag at +64, value at
    +128. For tests and measurements: one side waits for a value, the other publishes it.
    """

    cdef Py_buffer view
    cdef u8 *base
    cdef Waiter waiter

    def __cinit__(self, buffer, Py_ssize_t offset=0):
        PyObject_GetBuffer(buffer, &self.view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        if offset < 0 or offset & 63 or self.view.len < offset + 192:
            raise ValueError("the buffer must hold 192 bytes from a 64-byte aligned offset")
        self.base = <u8 *>self.view.buf + offset
        waiter_init(&self.waiter)

    def __dealloc__(self):
        PyBuffer_Release(&self.view)

    def publish(self, u64 value):
        """Store `value` and ring."""
        # Release: as a real publication would.
        store_release_u64(self.base + 128, value)
        doorbell_ring(self.base, self.base + 64)

    def wait_for(self, u64 value, i64 timeout_ns, bint may_spin):
        """`doorbell_wait` until the value is at least `value`: 1, 0 or 2."""
        cdef Target target
        cdef int outcome
        target.value = self.base + 128
        target.wanted = value
        with nogil:
            outcome = doorbell_wait(&self.waiter, self.base, self.base + 64, target_reached, &target, timeout_ns, may_spin)
        return outcome

    def play(self, Bell other, u64 first, u64 rounds, bint leads, i64 timeout_ns, bint may_spin,
             u32 pause_max=0):
        """Ping-pong: `rounds` times publish on `other` and wait here (waiting first unless it leads).

        A random pause of up to `pause_max` spin steps before each publication lets it collide with every step of
        the other side's way into sleep.

        Returns:
          The rounds completed before a wait timed out; interrupted waits are repeated.
        """
        cdef Target target
        cdef u64 value, random = first * 2 + 1
        cdef u32 step
        cdef int outcome = 1
        target.value = self.base + 128
        with nogil:
            for value in range(first, first + rounds):
                # A linear congruence (Knuth's constants); its high bits are random enough.
                random = random * <u64>6364136223846793005 + <u64>1442695040888963407
                if leads:
                    for step in range(<u32>(random >> 33) % (pause_max + 1)):
                        cpu_relax()
                    store_release_u64(other.base + 128, value)
                    doorbell_ring(other.base, other.base + 64)
                target.wanted = value
                outcome = 2
                while outcome == 2:
                    outcome = doorbell_wait(&self.waiter, self.base, self.base + 64, target_reached, &target,
                                            timeout_ns, may_spin)
                if outcome == 0:
                    break
                if not leads:
                    for step in range(<u32>(random >> 33) % (pause_max + 1)):
                        cpu_relax()
                    store_release_u64(other.base + 128, value)
                    doorbell_ring(other.base, other.base + 64)
        return rounds if outcome else value - first

    @property
    def sleeping(self):
        """The sleeping flag."""
        return bool(load_relaxed_u32(self.base + 64))

    @property
    def statistics(self):
        """Spins, spins that paid off, sleeps, and the score."""
        return {"spins": self.waiter.spins, "paid": self.waiter.spins_paid, "sleeps": self.waiter.sleeps,
                "wakes": self.waiter.wakes, "score": self.waiter.score, "backoff": self.waiter.probe_backoff}
