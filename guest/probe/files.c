/* What the kernel tells in small files of /proc and /sys: every read is bounded. */
#include "probe.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool write_path(char path[PATH_SIZE], const char *format, va_list arguments) {
    int length = vsnprintf(path, PATH_SIZE, format, arguments);
    return length >= 0 && length < PATH_SIZE;
}

#define PATH_OF(path, format)                                    \
    char path[PATH_SIZE];                                        \
    va_list arguments;                                           \
    va_start(arguments, format);                                 \
    bool path##_fits = write_path(path, format, arguments);      \
    va_end(arguments)

ssize_t read_bytes(const char *path, void *bytes, size_t size) {
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (descriptor < 0) return -1;
    size_t total = 0;
    ssize_t got = 0;
    while (total < size && (got = read(descriptor, (char *)bytes + total, size - total)) > 0) total += (size_t)got;
    close(descriptor);
    return got < 0 && total == 0 ? -1 : (ssize_t)total;
}

static bool read_line(char *text, size_t size, const char *path) {
    ssize_t got = read_bytes(path, text, size - 1);
    text[got < 0 ? 0 : got] = 0;
    size_t length = strlen(text); /* device tree strings end in NUL */
    while (length && (text[length - 1] == '\n' || text[length - 1] == ' ')) text[--length] = 0;
    return got >= 0;
}

bool read_text(char *text, size_t size, const char *format, ...) {
    PATH_OF(path, format);
    text[0] = 0;
    return path_fits && read_line(text, size, path);
}

long long read_number(const char *format, ...) {
    PATH_OF(path, format);
    char text[TEXT_SIZE], *end;
    if (!path_fits || !read_line(text, sizeof text, path)) return -1;
    long long value = strtoll(text, &end, 0);
    return end == text ? -1 : value;
}

bool read_link_name(char *name, size_t size, const char *format, ...) {
    PATH_OF(path, format);
    char target[PATH_SIZE];
    name[0] = 0;
    ssize_t length = path_fits ? readlink(path, target, sizeof target - 1) : -1;
    if (length <= 0) return false;
    target[length] = 0;
    const char *slash = strrchr(target, '/');
    snprintf(name, size, "%s", slash ? slash + 1 : target);
    return true;
}

bool real_path(char *resolved, size_t size, const char *format, ...) {
    PATH_OF(path, format);
    char whole[PATH_MAX];
    resolved[0] = 0;
    if (!path_fits || !realpath(path, whole)) return false;
    return (size_t)snprintf(resolved, size, "%s", whole) < size;
}

bool exists(const char *format, ...) {
    PATH_OF(path, format);
    return path_fits && access(path, F_OK) == 0;
}

static int by_name(const void *one, const void *other) { return strverscmp(one, other); }

const struct names *list_folder(const char *path) {
    static struct names names;
    names.count = 0;
    DIR *folder = opendir(path);
    if (!folder) return &names;
    for (struct dirent *entry; names.count < MOST_NAMES && (entry = readdir(folder));) {
        if (entry->d_name[0] == '.' || strlen(entry->d_name) >= NAME_SIZE) continue;
        strcpy(names.name[names.count++], entry->d_name);
    }
    closedir(folder);
    qsort(names.name, names.count, sizeof *names.name, by_name);
    return &names;
}

bool command_line_word(const char *word, char *value, size_t size) {
    char line[4096];
    size_t length = strlen(word);
    bool found = false;
    if (!read_text(line, sizeof line, "/proc/cmdline")) return false;
    for (char *rest, *part = strtok_r(line, " \n", &rest); part; part = strtok_r(NULL, " \n", &rest)) {
        if (strncmp(part, word, length) != 0 || part[length] != '=') continue;
        snprintf(value, size, "%s", part + length + 1); /* the last one counts, as for the kernel */
        found = true;
    }
    return found;
}
