"""Copying into a mapped file without being killed by it.

Touching a page of a mapped file ends in SIGBUS when the file system has nowhere to put it. On btrfs, and on
xfs when the segment is reflinked, even a page that was allocated ahead needs new space. So the copy runs
under a guard: its thread notes the target of the copy and where to continue. A SIGBUS at an address in the
target is then only a failed copy.

Invariants:
1. The handler takes a signal only if the thread it hits is inside a copy and the address is on a page of that
   copy. Anything else goes where it went before the handler was installed: to the earlier handler, or to the
   default action.
2. The handler is installed once in a process, and removed only to let the default action run.
3. A copy that fails leaves a prefix of the bytes, whole up to some page, as a copy that is killed does.
"""

cdef extern from *:
    """
    #include <setjmp.h>
    #include <signal.h>
    #include <stdint.h>
    #include <unistd.h>

    typedef struct { sigjmp_buf back; uintptr_t start, end; } occ_copy;

    /* Read by the handler: with static TLS that never allocates, whichever thread it hits. */
    #if defined(__GLIBC__)
    #define OCC_STATIC_TLS __attribute__((tls_model("initial-exec")))
    #else
    #define OCC_STATIC_TLS
    #endif
    static __thread occ_copy *volatile occ_copying OCC_STATIC_TLS;
    static struct sigaction occ_bus_before;
    static uintptr_t occ_page_size;             /* 0: not installed */

    static void occ_pass_on(int number, siginfo_t *info, void *context) {
        /* Sent by somebody, or about memory that nobody touched yet: it does not come again by itself. */
        int sent = info->si_code <= 0 || info->si_code == BUS_MCEERR_AO;
        sigset_t blocked = occ_bus_before.sa_mask, outer;
        if (!(occ_bus_before.sa_flags & SA_SIGINFO)
            && (occ_bus_before.sa_handler == SIG_DFL || occ_bus_before.sa_handler == SIG_IGN)) {
            if (sent && occ_bus_before.sa_handler == SIG_IGN) return;
            /* The access is made again after this, and ends as it would without our handler. */
            sigaction(number, &occ_bus_before, NULL);
            if (sent) raise(number);
            return;
        }
        if (!(occ_bus_before.sa_flags & SA_NODEFER)) sigaddset(&blocked, number);
        pthread_sigmask(SIG_BLOCK, &blocked, &outer);
        if (occ_bus_before.sa_flags & SA_SIGINFO) occ_bus_before.sa_sigaction(number, info, context);
        else occ_bus_before.sa_handler(number);
        pthread_sigmask(SIG_SETMASK, &outer, NULL);
    }

    static void occ_on_bus(int number, siginfo_t *info, void *context) {
        occ_copy *copy = occ_copying;
        uintptr_t at = (uintptr_t)info->si_addr;
        if (copy && info->si_code > 0 && at >= copy->start && at < copy->end) siglongjmp(copy->back, 1);
        occ_pass_on(number, info, context);
    }

    static int occ_guard_install(void) {
        struct sigaction ours;
        if (occ_page_size) return 0;
        if (sigaction(SIGBUS, NULL, &occ_bus_before)) return -1;
        ours.sa_sigaction = occ_on_bus;
        sigemptyset(&ours.sa_mask);
        /* NODEFER: the jump leaves the handler without a return that would unblock the signal. */
        ours.sa_flags = SA_SIGINFO | SA_NODEFER | (occ_bus_before.sa_flags & (SA_ONSTACK | SA_RESTART));
        if (sigaction(SIGBUS, &ours, NULL)) return -1;
        occ_page_size = (uintptr_t)getpagesize();
        return 0;
    }

    static int occ_guard_in_place(void) {
        struct sigaction now;
        return occ_page_size && !sigaction(SIGBUS, NULL, &now) && (now.sa_flags & SA_SIGINFO)
            && now.sa_sigaction == occ_on_bus;
    }

    /* Front to back: memcpy may write the end first, and a process killed half-way must leave a prefix. */
    static inline void occ_copy_forward(void *to, const void *from, size_t size) {
    #if defined(__x86_64__)
        __asm__ volatile ("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
    #else
        volatile unsigned char *out = to;
        const unsigned char *in = from;
        while (size--) *out++ = *in++;
    #endif
    }

    /* Not inlined, so that the jump cannot spoil what the caller keeps in registers. */
    static __attribute__((noinline)) int occ_copy_guarded(void *to, const void *from, size_t size) {
        occ_copy copy;
        /* Some processors report only the page. */
        copy.start = (uintptr_t)to & ~(occ_page_size - 1);
        copy.end = (uintptr_t)to + size;
        /* Without the signal mask: saving it would take two system calls, and NODEFER leaves it unchanged. */
        if (sigsetjmp(copy.back, 0)) {
            occ_copying = NULL;
            return -1;
        }
        /* Volatile, as the copy is: the compiler keeps their order, and the signal is the thread's own. */
        occ_copying = &copy;
        occ_copy_forward(to, from, size);
        occ_copying = NULL;
        return 0;
    }
    """
    int occ_guard_install()
    bint occ_guard_in_place() nogil
    int occ_copy_guarded(void *to, const void *data, size_t size) nogil


cdef void guard_install() noexcept:
    # A failure is not reported: `guard_in_place` is asked before anything is mapped.
    occ_guard_install()


cdef bint guard_in_place() noexcept nogil:
    return occ_guard_in_place()


cdef bint guarded_copy(void *to, const void *data, size_t size) noexcept nogil:
    return occ_copy_guarded(to, data, size) == 0
