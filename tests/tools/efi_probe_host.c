/*
 * The EFI probe's parsers as a library of this machine, without a C library: what they would say about tables that
 * stand between two addresses, and nothing else can be read.
 */
#include "probe.h"

efi_system_table *firmware;
efi_boot_services *boot;
efi_runtime_services *runtime;
efi_loaded_image *self;

static u64 first, limit;
static char *output;
static usize output_size, written;

void *find_table(const efi_guid *guid) { return guid ? (void *)(usize)first : 0; }

int readable(u64 address, u64 size) { return size && address >= first && address <= limit && size <= limit - address; }

void media_say(const void *data, usize length) {
    for (usize i = 0; i < length && written < output_size; i++) output[written++] = ((const char *)data)[i];
}

void media_flush(void) {}

efi_status media_replace(const efi_char *name, const void *data, usize length) {
    return name && data && length ? EFI_SUCCESS : EFI_NOT_FOUND;
}

static efi_status allocate(u32 type, usize size, void **buffer) {
    static u8 pool[1 << 20];
    *buffer = pool;
    return type && size <= sizeof pool ? EFI_SUCCESS : EFI_OUT_OF_RESOURCES;
}

static efi_status release(void *buffer) { return buffer ? EFI_SUCCESS : EFI_INVALID_PARAMETER; }

static void copy(void *destination, const void *source, usize length) {
    for (usize i = 0; i < length; i++) ((u8 *)destination)[i] = ((const u8 *)source)[i];
}

static void say_node(const char *name) {
    const char *names[] = {name, 0};
    fdt_node node;
    if (!fdt_find(names, &node)) return;
    record_begin("node");
    put_text("compatible", node.compatible);
    begin_array("regions");
    for (u32 i = 0; i < node.count; i++) {
        put_hex(0, node.regions[i].address);
        put_hex(0, node.regions[i].size);
    }
    end_array();
    put_number("first_bus", node.first_bus);
    put_number("last_bus", node.last_bus);
    record_end();
}

/* Says what the test of that letter (f, a, s) finds, as a run of its own, into the buffer. Returns how much that is. */
usize parse(char test, u64 start, u64 end, char *buffer, usize size) {
    static efi_system_table no_console;
    static efi_boot_services services;
    u32 length;
    services.allocate_pool = allocate;
    services.free_pool = release;
    services.copy_mem = copy;
    firmware = &no_console;
    boot = &services;
    first = start;
    limit = end;
    output = buffer;
    output_size = size;
    written = 0;
    record_begin("begin");
    record_end();
    if (test == 'f') {
        test_fdt();
        say_node("arm,gic-v3");
        say_node("pci-host-ecam-generic");
    } else if (test == 'a') {
        test_acpi();
        acpi_find("APIC", &length);
    } else {
        test_smbios();
    }
    return written;
}
