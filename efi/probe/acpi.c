/* The test "acpi": which tables there are (ACPI 6.5, section 5.2). */
#include "probe.h"

#define MOST_LENGTH (16u << 20)
#define MOST_TABLES 64
#define HEADER 36
#define FADT_DSDT 40
#define FADT_X_DSDT 140

static const efi_guid acpi2_guid = {0x8868e871, 0xe4f1, 0x11d3, {0xbc, 0x22, 0x00, 0x80, 0xc7, 0x3c, 0x88, 0x81}};
static const efi_guid acpi1_guid = {0xeb9d2d30, 0x2d88, 0x11d3, {0x9a, 0x16, 0x00, 0x90, 0x27, 0x3f, 0xc1, 0x4d}};

typedef struct {
    const u8 *at; /* 0: none */
    u32 length;
} table;

static const u8 *find_pointer(void) {
    const u8 *pointer = find_table(&acpi2_guid);
    if (!pointer) pointer = find_table(&acpi1_guid);
    return pointer;
}

/* A table whose header can be read and whose length makes sense. */
static table open_table(u64 address) {
    const table none = {0, 0};
    if (address >> 32 && sizeof(usize) == 4) return none;
    if (!readable(address, HEADER)) return none;
    const u8 *at = (const u8 *)(usize)address;
    u32 length = read_le32(at + 4);
    if (length < HEADER || length > MOST_LENGTH || !readable(address, length)) return none;
    return (table){at, length};
}

static int checksum_ok(table of) {
    u8 sum = 0;
    for (u32 i = 0; i < of.length; i++) sum = (u8)(sum + of.at[i]);
    return !sum;
}

typedef struct {
    table directory; /* XSDT or RSDT */
    u32 width;       /* bytes of an entry */
} root;

static root open_root(void) {
    const u8 *pointer = find_pointer();
    root found = {{0, 0}, 8};
    if (!pointer || !readable((usize)pointer, 20) || !same_bytes(pointer, "RSD PTR ", 8)) return found;
    if (pointer[15] >= 2 && readable((usize)pointer, 36)) found.directory = open_table(read_le64(pointer + 24));
    if (found.directory.at) return found;
    found.width = 4;
    found.directory = open_table(read_le32(pointer + 16));
    return found;
}

static u32 count_of(root in) {
    u32 count = in.directory.at ? (in.directory.length - HEADER) / in.width : 0;
    return count < MOST_TABLES ? count : MOST_TABLES;
}

static u64 entry(root in, u32 index) {
    const u8 *at = in.directory.at + HEADER + index * in.width;
    return in.width == 8 ? read_le64(at) : read_le32(at);
}

static u64 dsdt_address(table fadt) {
    u64 address = fadt.length >= FADT_X_DSDT + 8 ? read_le64(fadt.at + FADT_X_DSDT) : 0;
    if (!address && fadt.length >= FADT_DSDT + 4) address = read_le32(fadt.at + FADT_DSDT);
    return address;
}

/* A FADT is followed to its DSDT by the tables of the directory only: a DSDT names nothing. */
static void put_table(u64 address, int listed) {
    table found = open_table(address);
    begin_object(0);
    if (found.at) put_span("signature", (const char *)found.at, 4);
    put_hex("address", address);
    if (found.at) {
        put_number("length", found.length);
        put_number("revision", found.at[8]);
        put_bool("checksum_ok", checksum_ok(found));
    }
    end_object();
    if (!listed || !found.at || !same_bytes(found.at, "FACP", 4)) return;
    if (dsdt_address(found)) put_table(dsdt_address(found), 0);
}

test_result test_acpi(void) {
    const u8 *pointer = find_pointer();
    root in = open_root();
    record_begin("acpi");
    put_bool("present", pointer != 0);
    if (pointer) {
        if (readable((usize)pointer, 20)) put_number("revision", pointer[15]);
        put_hex("rsdp", (usize)pointer);
        begin_array("tables");
        for (u32 i = 0; i < count_of(in); i++) put_table(entry(in, i), 1);
        end_array();
    }
    record_end();
    return DONE;
}

const u8 *acpi_find(const char *signature, u32 *length) {
    root in = open_root();
    for (u32 i = 0; i < count_of(in); i++) {
        table found = open_table(entry(in, i));
        if (!found.at || !same_bytes(found.at, signature, 4)) continue;
        *length = found.length;
        return found.at;
    }
    return 0;
}
