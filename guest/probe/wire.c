/* Records as JSON, cut into fragments with checksums. */
#include "probe.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { FRAGMENT_BYTES = 56, RECORD_SIZE = 48 * 1024 };

static struct shared {
    uint16_t sequence;
    bool unfinished; /* the last fragment said that more follow */
} *shared;
static long long crash_after;

static char text[RECORD_SIZE];
static size_t length;
static bool overflow;
static char current[NAME_SIZE];

void wire_start(void) {
    char count[NAME_SIZE];
    static struct shared alone;
    void *memory = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    shared = memory == MAP_FAILED ? &alone : memory;
    if (command_line_word("armvm.crash", count, sizeof count)) crash_after = atoll(count);
}

static uint32_t crc32(const char *bytes, size_t count) {
    uint32_t crc = 0xffffffff;
    for (size_t i = 0; i < count; i++) {
        crc ^= (uint8_t)bytes[i];
        for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ (crc & 1 ? 0xedb88320 : 0);
    }
    return ~crc;
}

static void send(const char *payload, size_t count, bool more) {
    char covered[16 + FRAGMENT_BYTES], line[32 + FRAGMENT_BYTES];
    int head = snprintf(covered, sizeof covered, "L %04x %c ", shared->sequence, more ? '+' : '.');
    memcpy(covered + head, payload, count);
    int start = snprintf(line, sizeof line, "@A1 %.8s %08x ", covered, crc32(covered, (size_t)head + count));
    memcpy(line + start, payload, count);
    memcpy(line + start + count, "\r\n", 2);
    shared->unfinished = more;
    shared->sequence++;
    console_write(line, (size_t)start + count + 2);
    if (crash_after && shared->sequence == crash_after) abort(); /* asked for, by our own tests */
}

void wire_mend(void) {
    if (shared->unfinished) send("!", 1, false);
}

static void put(const char *bytes, size_t count) {
    if (count > sizeof text - length) {
        overflow = true;
        return;
    }
    memcpy(text + length, bytes, count);
    length += count;
}

static void put_string(const char *string) { put(string, strlen(string)); }

static void put_quoted(const char *string) {
    put("\"", 1);
    for (const unsigned char *c = (const unsigned char *)string; *c; c++) {
        char escaped[8];
        if (*c == '"' || *c == '\\') {
            escaped[0] = '\\';
            escaped[1] = (char)*c;
            put(escaped, 2);
        } else if (*c < 0x20 || *c > 0x7e) {
            snprintf(escaped, sizeof escaped, "\\u%04x", *c); /* bytes, as in Latin-1 */
            put(escaped, 6);
        } else {
            put((const char *)c, 1);
        }
    }
    put("\"", 1);
}

static void separate(const char *name) {
    char last = length ? text[length - 1] : '{';
    if (last != '{' && last != '[') put(",", 1);
    if (name) {
        put_quoted(name);
        put(":", 1);
    }
}

void record_begin(const char *type) {
    length = 0;
    overflow = false;
    snprintf(current, sizeof current, "%s", type);
    put("{", 1);
    put_text("t", type);
}

void record_end(void) {
    put("}", 1);
    if (overflow) {
        say_error("the record %s is too long", current);
        return;
    }
    for (size_t start = 0; start < length; start += FRAGMENT_BYTES) {
        size_t count = length - start < FRAGMENT_BYTES ? length - start : FRAGMENT_BYTES;
        send(text + start, count, start + count < length);
    }
}

void put_text(const char *name, const char *value) {
    separate(name);
    if (value) put_quoted(value);
    else put_string("null");
}

void put_null(const char *name) { put_text(name, NULL); }

void put_number(const char *name, long long value) {
    char digits[24];
    snprintf(digits, sizeof digits, "%lld", value);
    separate(name);
    put_string(digits);
}

void put_flag(const char *name, bool value) {
    separate(name);
    put_string(value ? "true" : "false");
}

void put_address(const char *name, unsigned long long value) {
    char digits[24];
    snprintf(digits, sizeof digits, "0x%llx", value);
    put_text(name, digits);
}

void put_hex(const char *name, const uint8_t *bytes, size_t count) {
    separate(name);
    put("\"", 1);
    for (size_t i = 0; i < count; i++) {
        char digits[3];
        snprintf(digits, sizeof digits, "%02x", bytes[i]);
        put(digits, 2);
    }
    put("\"", 1);
}

void put_base64(const char *name, const uint8_t *bytes, size_t count) {
    static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    separate(name);
    put("\"", 1);
    for (size_t i = 0; i < count; i += 3) {
        size_t left = count - i;
        uint32_t group = (uint32_t)bytes[i] << 16;
        if (left > 1) group |= (uint32_t)bytes[i + 1] << 8;
        if (left > 2) group |= bytes[i + 2];
        char out[4] = {alphabet[group >> 18], alphabet[group >> 12 & 63], '=', '='};
        if (left > 1) out[2] = alphabet[group >> 6 & 63];
        if (left > 2) out[3] = alphabet[group & 63];
        put(out, 4);
    }
    put("\"", 1);
}

static void open_with(const char *name, const char *bracket) {
    separate(name);
    put(bracket, 1);
}

void list_begin(const char *name) { open_with(name, "["); }
void list_end(void) { put("]", 1); }
void object_begin(const char *name) { open_with(name, "{"); }
void object_end(void) { put("}", 1); }

void say_error(const char *format, ...) {
    char what[TEXT_SIZE];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    record_begin("error");
    put_text("what", what);
    record_end();
}
