/* The line to the host: lines out and lines in, with a deadline on every wait. */
#include "probe.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

enum { WRITE_TIMEOUT_MS = 20000, FLUSH_TIMEOUT_MS = 5000 };

static int console = -1;
static bool stuck;
static char pending[1024];
static size_t pending_length;

static const char *const serial_lines[] = {"/dev/ttyAMA0", "/dev/hvc0", "/dev/ttyS0"};

/* The kernel's console may be a screen that nobody sees, or none: then the first serial line is better. */
static bool kernel_console_is_serial(void) {
    char active[TEXT_SIZE];
    if (!read_text(active, sizeof active, "/sys/class/tty/console/active") || !active[0]) return false;
    const char *last = strrchr(active, ' ');
    last = last ? last + 1 : active;
    return strncmp(last, "tty", 3) != 0 || !isdigit((unsigned char)last[3]);
}

static int open_line(const char *path) {
    int descriptor = open(path, O_RDWR | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    struct termios modes;
    if (descriptor >= 0 && tcgetattr(descriptor, &modes) == 0) {
        modes.c_iflag = ICRNL | IGNBRK | IGNPAR;
        modes.c_oflag &= ~(tcflag_t)OPOST;
        modes.c_lflag = 0;
        modes.c_cc[VMIN] = 1;
        modes.c_cc[VTIME] = 0;
        tcsetattr(descriptor, TCSANOW, &modes);
    }
    return descriptor;
}

void console_open(void) {
    if (console >= 0) close(console);
    console = kernel_console_is_serial() ? open_line("/dev/console") : -1;
    for (size_t i = 0; console < 0 && i < sizeof serial_lines / sizeof *serial_lines; i++)
        console = open_line(serial_lines[i]);
    if (console < 0) console = open_line("/dev/console");
    stuck = false;
    pending_length = 0;
}

int console_descriptor(void) { return console; }

void console_write(const char *bytes, size_t length) {
    long long deadline = now_ms() + (stuck ? 0 : WRITE_TIMEOUT_MS);
    while (length && console >= 0) {
        ssize_t written = write(console, bytes, length);
        if (written > 0) {
            bytes += written;
            length -= (size_t)written;
            stuck = false;
            continue;
        }
        long long remaining = deadline - now_ms();
        struct pollfd writable = {.fd = console, .events = POLLOUT};
        if (remaining <= 0 || poll(&writable, 1, (int)remaining) < 0) {
            stuck = true; /* nobody takes what is said: from now on without patience */
            return;
        }
        if (writable.revents & (POLLHUP | POLLERR)) sleep_ms(10);
    }
}

void console_remark(const char *format, ...) {
    char text[TEXT_SIZE];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text - 2, format, arguments);
    va_end(arguments);
    if (length < 0) return;
    size_t end = strlen(text);
    memcpy(text + end, "\r\n", 2);
    console_write(text, end + 2);
}

static void take_input(void) {
    if (pending_length == sizeof pending) pending_length = 0; /* no line of ours is that long */
    ssize_t got = read(console, pending + pending_length, sizeof pending - pending_length);
    if (got > 0) {
        pending_length += (size_t)got;
        return;
    }
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    /* Hung up: it would be ready for ever, and never say anything. */
    close(console);
    console = -1;
}

bool console_line(char *line, size_t size) {
    char *end = memchr(pending, '\n', pending_length);
    if (!end && console >= 0) {
        take_input();
        end = memchr(pending, '\n', pending_length);
    }
    if (!end) return false;
    size_t length = (size_t)(end - pending), kept = length < size ? length : size - 1;
    memcpy(line, pending, kept);
    line[kept] = 0;
    pending_length -= length + 1;
    memmove(pending, end + 1, pending_length);
    return true;
}

void console_flush(void) {
    long long deadline = now_ms() + FLUSH_TIMEOUT_MS;
    int queued = 0;
    while (console >= 0 && ioctl(console, TIOCOUTQ, &queued) == 0 && queued > 0 && now_ms() < deadline) sleep_ms(10);
    sleep_ms(50); /* what the device still holds itself */
}
