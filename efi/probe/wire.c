/* Records: JSON objects, said in short lines with a checksum on the console and in the file of the run. */
#include "probe.h"

#define FRAGMENT 56
#define MOST 32768 /* characters of a record */

static char record[MOST];
static usize length;
static const char *type_of_record;
static u32 sequence;
static int saying;

static const char digits[] = "0123456789abcdef";

/* A record that does not fit is replaced in record_end; until then length says how long it would have become. */
static void put(char character) {
    if (length < MOST) record[length] = character;
    length++;
}

static void put_plain(const char *text) {
    while (*text) put(*text++);
}

static void put_digits(u64 value, u32 count) {
    while (count--) put(digits[value >> count * 4 & 15]);
}

static void put_key(const char *key) {
    char last = length && length <= MOST ? record[length - 1] : ',';
    if (last != '{' && last != '[') put(',');
    if (!key) return;
    put('"');
    put_plain(key);
    put_plain("\":");
}

static void put_character(u32 character) {
    if (character == '"' || character == '\\') put('\\');
    if (character >= ' ' && character < 0x7f) {
        put((char)character);
    } else {
        put_plain("\\u");
        put_digits(character, 4);
    }
}

/* A gap in the sequence tells the reader that what was being said has no end. */
void record_drop(void) {
    if (saying) sequence = (sequence + 1) & 0xffff;
    saying = 0;
    length = 0;
}

void record_begin(const char *type) {
    type_of_record = type;
    length = 0;
    put('{');
    put_text("t", type);
}

static void put_decimal(u64 value) {
    char text[20];
    u32 count = 0, digit;
    do {
        value = divide(value, 10, &digit);
        text[count++] = (char)('0' + digit);
    } while (value);
    while (count) put(text[--count]);
}

void put_number(const char *key, u64 value) {
    put_key(key);
    put_decimal(value);
}

void put_signed(const char *key, int value) {
    put_key(key);
    if (value < 0) put('-');
    put_decimal(value < 0 ? 0 - (u32)value : (u32)value);
}

void put_hex(const char *key, u64 value) {
    u32 count = 1;
    while (count < 16 && value >> count * 4) count++;
    put_key(key);
    put_plain("\"0x");
    put_digits(value, count);
    put('"');
}

void put_status(const char *key, efi_status status) { put_hex(key, status); }

void put_bool(const char *key, int value) {
    put_key(key);
    put_plain(value ? "true" : "false");
}

void put_null(const char *key) {
    put_key(key);
    put_plain("null");
}

void put_text(const char *key, const char *text) { put_span(key, text, MOST); }

void put_span(const char *key, const char *text, usize limit) {
    put_key(key);
    put('"');
    while (limit-- && *text) put_character((u8)*text++);
    put('"');
}

void put_utf16(const char *key, const efi_char *text, usize limit) {
    put_key(key);
    put('"');
    while (text && limit-- && *text) put_character(*text++);
    put('"');
}

void put_bytes(const char *key, const void *data, usize count) {
    const u8 *at = data;
    put_key(key);
    put('"');
    while (count--) put_digits(*at++, 2);
    put('"');
}

void put_base64(const char *key, const void *data, usize count) {
    static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const u8 *at = data;
    put_key(key);
    put('"');
    for (; count; at += 3) {
        u32 have = count < 3 ? (u32)count : 3;
        u32 bits = (u32)at[0] << 16 | (have > 1 ? (u32)at[1] << 8 : 0) | (have > 2 ? at[2] : 0);
        for (u32 i = 0; i < 4; i++) put(i <= have ? alphabet[bits >> (18 - i * 6) & 63] : '=');
        count -= have;
    }
    put('"');
}

void put_guid(const char *key, const efi_guid *guid) {
    put_key(key);
    put('"');
    put_digits(guid->a, 8);
    put('-');
    put_digits(guid->b, 4);
    put('-');
    put_digits(guid->c, 4);
    for (u32 i = 0; i < 8; i++) {
        if (i == 0 || i == 2) put('-');
        put_digits(guid->d[i], 2);
    }
    put('"');
}

void begin_array(const char *key) {
    put_key(key);
    put('[');
}

void end_array(void) { put(']'); }

void begin_object(const char *key) {
    put_key(key);
    put('{');
}

void end_object(void) { put('}'); }

/* One line: "@A1 E SSSS F CCCCCCCC PAYLOAD", with CR LF on the console and LF in the file. */
static void say_fragment(const char *payload, usize count, int last) {
    char line[96];
    efi_char wide[96];
    usize at = 0, end;
    static const char head[] = "@A1 E ";
    for (; head[at]; at++) line[at] = head[at];
    for (u32 i = 4; i--;) line[at++] = digits[sequence >> i * 4 & 15];
    line[at++] = ' ';
    line[at++] = last ? '.' : '+';
    line[at++] = ' ';
    u32 crc = crc32(0, line + 4, at - 4);
    crc = crc32(crc, payload, count);
    for (u32 i = 8; i--;) line[at++] = digits[crc >> i * 4 & 15];
    line[at++] = ' ';
    for (usize i = 0; i < count; i++) line[at++] = payload[i];
    end = at;
    for (usize i = 0; i < end; i++) wide[i] = (u8)line[i];
    wide[end] = '\r';
    wide[end + 1] = '\n';
    wide[end + 2] = 0;
    line[end] = '\n';
    sequence = (sequence + 1) & 0xffff;
    media_say(line, end + 1);
    if (firmware->console_out) firmware->console_out->output_string(firmware->console_out, wide);
}

void record_end(void) {
    put('}');
    if (length > MOST) {
        const char *type = type_of_record;
        record_begin("overflow");
        put_text("of", type);
        put('}');
    }
    saying = 1;
    for (usize at = 0; at < length; at += FRAGMENT) {
        usize count = length - at < FRAGMENT ? length - at : FRAGMENT;
        say_fragment(record + at, count, at + count == length);
    }
    media_flush();
    saying = 0;
    length = 0;
}
