/* What a C library would give. */
#include "probe.h"

int same_bytes(const void *one, const void *other, usize length) {
    const u8 *a = one, *b = other;
    while (length--)
        if (*a++ != *b++) return 0;
    return 1;
}

int same_guid(const efi_guid *one, const efi_guid *other) { return same_bytes(one, other, sizeof *one); }

int same_text(const char *one, const char *other) {
    while (*one && *one == *other) one++, other++;
    return *one == *other;
}

int in_list(const char *list, const char *word) {
    while (*list) {
        const char *at = word;
        while (*at && *list == *at) list++, at++;
        if (!*at && (!*list || *list == ',')) return 1;
        while (*list && *list != ',') list++;
        if (*list) list++;
    }
    return 0;
}

u64 divide(u64 value, u32 divisor, u32 *rest) {
    u64 quotient = 0, remainder = 0;
    if (!(value >> 32)) {
        *rest = (u32)value % divisor;
        return (u32)value / divisor;
    }
    for (int bit = 63; bit >= 0; bit--) {
        remainder = remainder << 1 | (value >> bit & 1);
        quotient <<= 1;
        if (remainder < divisor) continue;
        remainder -= divisor;
        quotient |= 1;
    }
    *rest = (u32)remainder;
    return quotient;
}

/* As in zlib; four bits at a time. */
u32 crc32(u32 crc, const void *data, usize length) {
    static const u32 table[16] = {
        0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
        0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c, 0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c,
    };
    const u8 *at = data;
    crc = ~crc;
    while (length--) {
        crc ^= *at++;
        crc = crc >> 4 ^ table[crc & 15];
        crc = crc >> 4 ^ table[crc & 15];
    }
    return ~crc;
}

u32 read_le32(const u8 *at) { return at[0] | (u32)at[1] << 8 | (u32)at[2] << 16 | (u32)at[3] << 24; }

u64 read_le64(const u8 *at) { return read_le32(at) | (u64)read_le32(at + 4) << 32; }

u32 read_be32(const u8 *at) { return (u32)at[0] << 24 | (u32)at[1] << 16 | (u32)at[2] << 8 | at[3]; }
