/* The threads of a library for CPUs: they share the parts of a parallel loop, and give up where that does not pay.

   TVM's own wait by spinning, for each other too, and are bound to the first cores of the machine. Beside other busy
   processes that is a hundred times slower than one thread. These take the next part that nobody has begun, sleep soon,
   and are fewer while others keep them waiting. What a part computes does not depend on who runs it, or beside whom. */

#define _GNU_SOURCE
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* As TVM's compiler calls them: `loop` runs one of `parts`. */
typedef struct {
    void *unused;
    int32_t parts;
} Group;
typedef int (*Loop)(int part, Group *group, void *data);

void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message);

enum { MOST_THREADS = 1024 };

/* Nanoseconds. How long a helper looks for more work, and the caller for the end of helpers' parts, before it sleeps. */
static const int64_t HELPER_SPINS = 500000, CALLER_SPINS = 100000;
/* Loops that take this much longer than one part of theirs, over about so long, leave the work to half of the threads:
   these would take at most twice as long. */
static const double TOO_LONG = 1.4;
static const int64_t JUDGED_FROM = 4000000, JUDGED_OVER = 40000000;
/* Then more are tried again after so long: at first, and at last. */
static const int64_t FIRST_PAUSE = 200000000, LAST_PAUSE = 1000000000;

/* The loop that is run. */
static Loop loop;
static void *loop_data;
static Group group;
/* In cache lines of their own. */
static _Alignas(64) _Atomic uint64_t tickets;   /* The loop's number, its parts, and the next that nobody has begun. */
static _Alignas(64) _Atomic uint32_t announced; /* Changes with each loop; sleeping helpers wait for that. */
static _Alignas(64) _Atomic uint32_t pending;   /* Parts of helpers that have not ended; the caller waits for 0. */
static _Alignas(64) _Atomic int failed, caller_sleeps;

/* Who runs it. */
static atomic_flag in_use = ATOMIC_FLAG_INIT;
static _Atomic int awake; /* Helpers that do not sleep. */
static _Atomic int active = 1; /* Threads that are worth it now, */
static _Atomic int most = 1;   /* and that may be at most. */
static _Atomic int changed;    /* Whether `most` was set since the loop before. */
static int helpers;            /* Helpers that were started. */

/* How it goes: times of loops, and of one part of each. */
static double loops, parts_of_caller;
static int64_t tried_at, retry_at, pause_time;

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void sleep_while(_Atomic uint32_t *word, uint32_t value) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void wake(_Atomic uint32_t *word, int count) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

/* Whether `word` becomes another than `value` within a time. */
static int changes_within(_Atomic uint32_t *word, uint32_t value, int64_t time) {
    int64_t end = now() + time;
    do {
        for (int i = 0; i < 64; i++) {
            if (atomic_load(word) != value) return 1;
            relax();
        }
    } while (now() < end);
    return 0;
}

/* The next part that nobody has begun; -1 when there is none. The loop does not end before its part was run. */
static int take_part(void) {
    uint64_t ticket = atomic_load(&tickets);
    do {
        if ((ticket & 0xFFFF) >= (ticket >> 16 & 0xFFFF)) return -1;
    } while (!atomic_compare_exchange_weak(&tickets, &ticket, ticket + 1));
    return (int)(ticket & 0xFFFF);
}

static void *help(void *unused) {
    (void)unused;
    for (;;) {
        uint32_t seen = atomic_load(&announced);
        for (int part; (part = take_part()) >= 0;) {
            if (loop(part, &group, loop_data)) atomic_store(&failed, 1);
            if (atomic_fetch_sub(&pending, 1) == 1 && atomic_load(&caller_sleeps)) wake(&pending, 1);
        }
        if (atomic_load(&awake) < atomic_load(&active) && changes_within(&announced, seen, HELPER_SPINS)) continue;
        atomic_fetch_sub(&awake, 1);
        sleep_while(&announced, seen);
        atomic_fetch_add(&awake, 1);
    }
    return NULL;
}

/* Has `count` helpers, or as many as the system gives. */
static void start_helpers(int count) {
    pthread_attr_t attributes;
    sigset_t all, own;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, 1 << 20);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &own); /* Signals are the caller's. */
    for (pthread_t thread; helpers < count; helpers++) {
        atomic_fetch_add(&awake, 1);
        if (pthread_create(&thread, &attributes, help, NULL)) {
            atomic_fetch_sub(&awake, 1);
            break;
        }
    }
    pthread_sigmask(SIG_SETMASK, &own, NULL);
    pthread_attr_destroy(&attributes);
}

static void use_threads(int count, int64_t time) {
    atomic_store(&active, count);
    tried_at = time;
    loops = parts_of_caller = 0;
}

/* How many threads the loop that begins now has. */
static int threads_now(int64_t begun) {
    int limit = atomic_load(&most), count = atomic_load(&active);
    if (atomic_exchange(&changed, 0)) {
        pause_time = FIRST_PAUSE;
        use_threads(limit, begun);
    } else if (count < limit && begun > retry_at) {
        use_threads(2 * count < limit ? 2 * count : limit, begun);
    }
    count = atomic_load(&active);
    if (helpers < count - 1) start_helpers(count - 1);
    return count < helpers + 1 ? count : helpers + 1;
}

/* A loop took a time that ended now, and one part of it another. */
static void judge(double time, double part, int64_t ended) {
    loops += time;
    parts_of_caller += part;
    if (loops < JUDGED_FROM) return;
    if (loops > TOO_LONG * parts_of_caller) {
        int soon = ended - tried_at < 4 * pause_time;
        pause_time = !soon ? FIRST_PAUSE : 2 * pause_time < LAST_PAUSE ? 2 * pause_time : LAST_PAUSE;
        retry_at = ended + pause_time;
        use_threads((atomic_load(&active) + 1) / 2, ended);
    } else if (loops > JUDGED_OVER) {
        loops /= 2;
        parts_of_caller /= 2;
    }
}

static int run_alone(Loop each, void *data) {
    Group alone = {NULL, 1};
    return each(0, &alone, data);
}

/* What TVM's compiler calls for a parallel loop. */
int gecko_mlc_parallel_launch(Loop each, void *data, int unused) {
    (void)unused;
    if (atomic_load(&most) == 1 || atomic_flag_test_and_set(&in_use)) return run_alone(each, data);
    int64_t begun = now();
    int parts = threads_now(begun), own = 1;
    if (parts == 1) {
        atomic_flag_clear(&in_use);
        return run_alone(each, data);
    }
    loop = each;
    loop_data = data;
    group.parts = parts;
    atomic_store(&failed, 0);
    atomic_store(&pending, parts - 1);
    uint64_t number = (atomic_load(&tickets) >> 32) + 1;
    atomic_store(&tickets, number << 32 | (uint64_t)parts << 16 | 1);
    atomic_fetch_add(&announced, 1);
    if (atomic_load(&awake) < parts - 1) wake(&announced, parts - 1);
    int result = each(0, &group, data);
    for (int part; (part = take_part()) >= 0; own++) {
        result |= each(part, &group, data);
        atomic_fetch_sub(&pending, 1);
    }
    int64_t waits = now();
    for (uint32_t left; (left = atomic_load(&pending)) != 0;) {
        if (changes_within(&pending, left, CALLER_SPINS)) continue;
        atomic_store(&caller_sleeps, 1);
        sleep_while(&pending, left);
        atomic_store(&caller_sleeps, 0);
    }
    int64_t ended = now();
    /* Waiting for a moment is the price of any loop: half of the threads would pay it, too. */
    judge((ended - waits < CALLER_SPINS ? waits : ended) - begun, (double)(waits - begun) / own, ended);
    int failure = atomic_load(&failed);
    atomic_flag_clear(&in_use);
    if (failure && !result) TVMFFIErrorSetRaisedFromCStr("RuntimeError", "a part of a parallel loop failed");
    return failure || result ? -1 : 0;
}

/* Run parallel loops with `threads` from now on, the caller's among them. */
void gecko_mlc_set_threads(int threads) {
    atomic_store(&most, threads < 1 ? 1 : threads > MOST_THREADS ? MOST_THREADS : threads);
    atomic_store(&changed, 1);
}

/* A child process has none of the helpers. */
static void forked(void) {
    helpers = 0;
    atomic_store(&awake, 0);
    atomic_store(&caller_sleeps, 0);
    atomic_flag_clear(&in_use);
}

__attribute__((constructor)) static void loaded(void) { pthread_atfork(NULL, NULL, forked); }
