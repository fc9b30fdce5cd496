/* What may hang (a driver, a disk, a firmware service) happens in a process of its own, with a deadline. */
#include "probe.h"

#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

long long now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

void sleep_ms(long milliseconds) {
    if (milliseconds <= 0) return;
    struct timespec rest = {.tv_sec = milliseconds / 1000, .tv_nsec = milliseconds % 1000 * 1000000};
    nanosleep(&rest, NULL);
}

static size_t read_all(int from, char *bytes, size_t size, int timeout_ms) {
    long long deadline = now_ms() + timeout_ms;
    size_t total = 0;
    while (total < size) {
        long long remaining = deadline - now_ms();
        struct pollfd readable = {.fd = from, .events = POLLIN};
        if (remaining <= 0 || poll(&readable, 1, (int)remaining) <= 0) break;
        ssize_t got = read(from, bytes + total, size - total);
        if (got <= 0) break;
        total += (size_t)got;
    }
    return total;
}

bool attempt(void (*work)(const void *question, void *answer), const void *question, void *answer, size_t size,
             int timeout_ms) {
    int ends[2];
    if (pipe(ends) < 0) return false;
    pid_t child = fork();
    if (child == 0) {
        close(ends[0]);
        work(question, answer);
        const char *bytes = answer;
        for (size_t left = size; left;) {
            ssize_t written = write(ends[1], bytes, left);
            if (written <= 0) _exit(1);
            bytes += written;
            left -= (size_t)written;
        }
        _exit(0);
    }
    close(ends[1]);
    bool done = child > 0 && read_all(ends[0], answer, size, timeout_ms) == size;
    close(ends[0]);
    if (child > 0) {
        if (!done) kill(child, SIGKILL);
        /* One that hangs in the kernel cannot be killed, and is left behind. */
        waitpid(child, NULL, done ? 0 : WNOHANG);
    }
    return done;
}
