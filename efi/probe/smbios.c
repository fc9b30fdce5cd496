/* The test "smbios": who made this machine and its firmware (SMBIOS 3.6, sections 5.2, 6.1, 7.1, 7.2). */
#include "probe.h"

#define MOST_LENGTH (1u << 20)
#define MOST_STRUCTURES 512
#define MOST_STRING 128
#define BIOS 0
#define SYSTEM 1
#define END_OF_TABLE 127

static const efi_guid smbios3_guid = {0xf2fd1544, 0x9794, 0x4a2c, {0x99, 0x2e, 0xe5, 0xbb, 0xcf, 0x20, 0xe3, 0x94}};
static const efi_guid smbios_guid = {0xeb9d2d31, 0x2d88, 0x11d3, {0x9a, 0x16, 0x00, 0x90, 0x27, 0x3f, 0xc1, 0x4d}};

typedef struct {
    u64 address; /* of the structures; 0 when the entry point is not sound */
    u32 length;
    u8 major, minor;
} entry_point;

static entry_point open_entry(void) {
    const entry_point none = {0, 0, 0, 0};
    const u8 *at = find_table(&smbios3_guid);
    if (at) {
        if (!readable((usize)at, 24) || !same_bytes(at, "_SM3_", 5)) return none;
        return (entry_point){read_le64(at + 16), read_le32(at + 12), at[7], at[8]};
    }
    at = find_table(&smbios_guid);
    if (!at || !readable((usize)at, 31) || !same_bytes(at, "_SM_", 4)) return none;
    return (entry_point){read_le32(at + 24), at[22] | (u32)at[23] << 8, at[6], at[7]};
}

/* String number `index` (from 1) of those that follow a structure. */
static void put_string(const char *key, const u8 *at, const u8 *end, u32 index) {
    if (!index) return;
    while (--index && at < end && *at) {
        while (at < end && *at) at++;
        if (at < end) at++;
    }
    if (at >= end || !*at) return;
    usize room = (usize)(end - at);
    put_span(key, (const char *)at, room < MOST_STRING ? room : MOST_STRING);
}

/* The structure after this one's strings, which end in two zero bytes. */
static const u8 *skip_strings(const u8 *at, const u8 *end) {
    while (end - at >= 2 && (at[0] || at[1])) at++;
    return end - at >= 2 ? at + 2 : end;
}

static void put_strings(const u8 *at, const u8 *end) {
    u32 seen = 0; /* the first of each type counts */
    for (u32 count = 0; count < MOST_STRUCTURES && end - at >= 4; count++) {
        u8 type = at[0], size = at[1];
        if (size < 4 || size > end - at || type == END_OF_TABLE) return;
        const u8 *strings = at + size;
        if (type == BIOS && size >= 6 && !(seen & 1)) {
            put_string("bios_vendor", strings, end, at[4]);
            put_string("bios_version", strings, end, at[5]);
            seen |= 1;
        }
        if (type == SYSTEM && size >= 7 && !(seen & 2)) {
            put_string("manufacturer", strings, end, at[4]);
            put_string("product", strings, end, at[5]);
            put_string("version", strings, end, at[6]);
            seen |= 2;
        }
        at = skip_strings(strings, end);
    }
}

static void put_version(u8 major, u8 minor) {
    char text[] = "0.0";
    text[0] = (char)('0' + major % 10);
    text[2] = (char)('0' + minor % 10);
    put_text("version", text);
}

test_result test_smbios(void) {
    entry_point entry = open_entry();
    u32 length = entry.length < MOST_LENGTH ? entry.length : MOST_LENGTH;
    record_begin("smbios");
    put_bool("present", find_table(&smbios3_guid) || find_table(&smbios_guid));
    if (entry.address) {
        put_version(entry.major, entry.minor);
        put_hex("address", entry.address);
        put_number("length", entry.length);
        begin_object("strings");
        if (readable(entry.address, length)) {
            const u8 *start = (const u8 *)(usize)entry.address;
            put_strings(start, start + length);
        }
        end_object();
    }
    record_end();
    return DONE;
}
