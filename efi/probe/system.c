/* The tests "system" and "tables": the system table and the configuration tables. */
#include "probe.h"

#define MOST_TABLES 64

/* Section 4.2: the CRC of a header counts its own field as zero. */
static int header_crc_ok(const efi_table_header *header) {
    static const u8 zero[4];
    const u8 *at = (const u8 *)header;
    u32 size = header->header_size;
    if (size < sizeof *header || size > 4096) return 0;
    u32 crc = crc32(crc32(crc32(0, at, 16), zero, 4), at + 20, size - 20);
    return crc == header->crc32;
}

test_result test_system(void) {
    usize options = self->load_options ? self->load_options_size : 0;
    record_begin("system");
    put_number("uefi_revision", firmware->header.revision);
    put_utf16("vendor", firmware->firmware_vendor, 128);
    put_hex("firmware_revision", firmware->firmware_revision);
    put_bool("boot_services", 1);
    put_bool("crc_ok", header_crc_ok(&firmware->header));
    put_bytes("load_options_hex", self->load_options, options < 512 ? options : 512);
    record_end();
    return DONE;
}

static usize table_count(void) {
    usize count = firmware->configuration_tables ? firmware->configuration_table_count : 0;
    return count < MOST_TABLES ? count : MOST_TABLES;
}

test_result test_tables(void) {
    for (usize i = 0; i < table_count(); i++) {
        record_begin("table");
        put_guid("guid", &firmware->configuration_tables[i].guid);
        put_hex("address", (usize)firmware->configuration_tables[i].table);
        record_end();
    }
    return DONE;
}

void *find_table(const efi_guid *guid) {
    for (usize i = 0; i < table_count(); i++)
        if (same_guid(&firmware->configuration_tables[i].guid, guid)) return firmware->configuration_tables[i].table;
    return 0;
}
