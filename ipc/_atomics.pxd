"""Every memory order of the project is named in this file and nowhere else.

Thin inline wrappers over the compiler's atomics and three system calls. `u32`/`u64` words must be naturally
aligned. Naming: `load_acquire_u64` pairs with `store_release_u64`; `*_relaxed` gives no order;
`*_seq_cst` takes part in the one total order that the pin and doorbell protocols need.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

ctypedef uint8_t u8
ctypedef uint16_t u16
ctypedef uint32_t u32
ctypedef uint64_t u64
ctypedef int64_t i64

cdef extern from *:
    """
    #include <stdint.h>
    #include <errno.h>
    #include <time.h>
    #include <unistd.h>
    #include <sched.h>
    #include <linux/futex.h>
    #include <sys/syscall.h>
    static inline uint32_t occ_load_relaxed_u32(const void *p) { return __atomic_load_n((const uint32_t *)p, __ATOMIC_RELAXED); }
    static inline uint64_t occ_load_relaxed_u64(const void *p) { return __atomic_load_n((const uint64_t *)p, __ATOMIC_RELAXED); }
    static inline uint32_t occ_load_acquire_u32(const void *p) { return __atomic_load_n((const uint32_t *)p, __ATOMIC_ACQUIRE); }
    static inline uint64_t occ_load_acquire_u64(const void *p) { return __atomic_load_n((const uint64_t *)p, __ATOMIC_ACQUIRE); }
    static inline uint32_t occ_load_seq_cst_u32(const void *p) { return __atomic_load_n((const uint32_t *)p, __ATOMIC_SEQ_CST); }
    static inline uint64_t occ_load_seq_cst_u64(const void *p) { return __atomic_load_n((const uint64_t *)p, __ATOMIC_SEQ_CST); }
    static inline void occ_store_relaxed_u32(void *p, uint32_t v) { __atomic_store_n((uint32_t *)p, v, __ATOMIC_RELAXED); }
    static inline void occ_store_relaxed_u64(void *p, uint64_t v) { __atomic_store_n((uint64_t *)p, v, __ATOMIC_RELAXED); }
    static inline void occ_store_release_u32(void *p, uint32_t v) { __atomic_store_n((uint32_t *)p, v, __ATOMIC_RELEASE); }
    static inline void occ_store_release_u64(void *p, uint64_t v) { __atomic_store_n((uint64_t *)p, v, __ATOMIC_RELEASE); }
    static inline void occ_store_seq_cst_u32(void *p, uint32_t v) { __atomic_store_n((uint32_t *)p, v, __ATOMIC_SEQ_CST); }
    static inline void occ_store_seq_cst_u64(void *p, uint64_t v) { __atomic_store_n((uint64_t *)p, v, __ATOMIC_SEQ_CST); }
    static inline uint32_t occ_fetch_add_u32(void *p, uint32_t v) { return __atomic_fetch_add((uint32_t *)p, v, __ATOMIC_SEQ_CST); }
    static inline int occ_cas_u32(void *p, uint32_t expected, uint32_t desired) {
        return __atomic_compare_exchange_n((uint32_t *)p, &expected, desired, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    static inline void occ_fence_acquire(void) { __atomic_thread_fence(__ATOMIC_ACQUIRE); }
    static inline void occ_fence_release(void) { __atomic_thread_fence(__ATOMIC_RELEASE); }
    static inline void occ_fence_seq_cst(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
    static inline void occ_cpu_relax(void) {
    #if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
    #elif defined(__aarch64__)
        __asm__ __volatile__("yield");
    #endif
    }
    static inline void occ_prefetch(const void *p) { __builtin_prefetch(p, 0, 1); }
    /* 0 when woken or the word already differs; otherwise the errno (ETIMEDOUT, EINTR). Not FUTEX_PRIVATE: words are shared between processes. */
    static inline int occ_futex_wait(const void *word, uint32_t expected, int64_t timeout_ns) {
        struct timespec ts, *tsp = 0;
        if (timeout_ns >= 0) { ts.tv_sec = timeout_ns / 1000000000; ts.tv_nsec = timeout_ns % 1000000000; tsp = &ts; }
        if (syscall(SYS_futex, word, FUTEX_WAIT, expected, tsp, 0, 0) == 0) return 0;
        return errno == EAGAIN ? 0 : errno;
    }
    static inline int occ_futex_wake(const void *word, int count) { return (int)syscall(SYS_futex, word, FUTEX_WAKE, count, 0, 0, 0); }
    static inline int64_t occ_clock_monotonic_ns(void) { struct timespec ts; clock_gettime(CLOCK_MONOTONIC, &ts); return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec; }
    static inline int64_t occ_clock_coarse_ns(void) { struct timespec ts; clock_gettime(CLOCK_MONOTONIC_COARSE, &ts); return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec; }
    static inline int64_t occ_clock_realtime_ns(void) { struct timespec ts; clock_gettime(CLOCK_REALTIME, &ts); return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec; }
    static inline int occ_current_cpu(void) { return sched_getcpu(); }
    """
    u32 load_relaxed_u32 "occ_load_relaxed_u32"(const void *p) noexcept nogil
    u64 load_relaxed_u64 "occ_load_relaxed_u64"(const void *p) noexcept nogil
    u32 load_acquire_u32 "occ_load_acquire_u32"(const void *p) noexcept nogil
    u64 load_acquire_u64 "occ_load_acquire_u64"(const void *p) noexcept nogil
    u32 load_seq_cst_u32 "occ_load_seq_cst_u32"(const void *p) noexcept nogil
    u64 load_seq_cst_u64 "occ_load_seq_cst_u64"(const void *p) noexcept nogil
    void store_relaxed_u32 "occ_store_relaxed_u32"(void *p, u32 v) noexcept nogil
    void store_relaxed_u64 "occ_store_relaxed_u64"(void *p, u64 v) noexcept nogil
    void store_release_u32 "occ_store_release_u32"(void *p, u32 v) noexcept nogil
    void store_release_u64 "occ_store_release_u64"(void *p, u64 v) noexcept nogil
    void store_seq_cst_u32 "occ_store_seq_cst_u32"(void *p, u32 v) noexcept nogil
    void store_seq_cst_u64 "occ_store_seq_cst_u64"(void *p, u64 v) noexcept nogil
    u32 fetch_add_u32 "occ_fetch_add_u32"(void *p, u32 v) noexcept nogil
    bint cas_u32 "occ_cas_u32"(void *p, u32 expected, u32 desired) noexcept nogil
    void fence_acquire "occ_fence_acquire"() noexcept nogil
    void fence_release "occ_fence_release"() noexcept nogil
    void fence_seq_cst "occ_fence_seq_cst"() noexcept nogil
    void cpu_relax "occ_cpu_relax"() noexcept nogil
    void prefetch "occ_prefetch"(const void *p) noexcept nogil
    int futex_wait "occ_futex_wait"(const void *word, u32 expected, i64 timeout_ns) noexcept nogil
    int futex_wake "occ_futex_wake"(const void *word, int count) noexcept nogil
    i64 clock_monotonic_ns "occ_clock_monotonic_ns"() noexcept nogil
    i64 clock_coarse_ns "occ_clock_coarse_ns"() noexcept nogil      # monotonic, of the last timer tick: a few ns, where the exact time takes twenty
    i64 clock_realtime_ns "occ_clock_realtime_ns"() noexcept nogil
    int current_cpu "occ_current_cpu"() noexcept nogil         # a hint: stale at once; -1: unknown
