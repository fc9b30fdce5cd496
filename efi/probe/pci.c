/*
 * The test "pci": every function with its identity. Firmware's own drivers have it (PciIo); else it is read from the
 * configuration space, by the root bridges or where the device tree puts it.
 */
#include "probe.h"

#define IN_A_RECORD 6
#define MOST_FUNCTIONS 1024
#define HEADER_WORDS 16
#define ABSENT 0xffffffff

static const efi_guid pci_guid = EFI_PCI_IO_GUID;
static const efi_guid root_bridge_guid = EFI_PCI_ROOT_BRIDGE_IO_GUID;

typedef struct {
    u32 segment, bus, device, function;
} pci_place;

/* A way to read a word of configuration space; ABSENT when there is nothing. */
typedef struct config_space {
    u32 (*read)(const struct config_space *, pci_place, u32 offset);
    efi_pci_root_bridge_io *bridge;
    u64 window;
    u32 segment, first_bus, last_bus;
} config_space;

static u32 found;

static void put_place(pci_place place) {
    static const char digits[] = "0123456789abcdef";
    char text[] = "0000:00:00.0";
    for (u32 i = 0; i < 4; i++) text[i] = digits[place.segment >> (12 - i * 4) & 15];
    text[5] = digits[place.bus >> 4 & 15];
    text[6] = digits[place.bus & 15];
    text[8] = digits[place.device >> 4 & 1];
    text[9] = digits[place.device & 15];
    text[11] = digits[place.function & 7];
    put_text(0, text);
}

static void put_function(pci_place place, const u32 *header) {
    u32 kind = header[3] >> 16 & 255;
    u32 bars = (kind & 127) == 0 ? 6 : (kind & 127) == 1 ? 2 : 0;
    if (found % IN_A_RECORD == 0) {
        record_begin("pci-function");
        begin_array("functions");
    }
    begin_array(0);
    put_place(place);
    put_number(0, header[0] & 0xffff);
    put_number(0, header[0] >> 16);
    put_number(0, header[2] >> 8);
    put_number(0, kind);
    begin_array(0);
    for (u32 i = 0; i < bars; i++) put_hex(0, header[4 + i]);
    end_array();
    end_array();
    if (++found % IN_A_RECORD == 0) {
        end_array();
        record_end();
    }
}

static void finish_functions(void) {
    if (found % IN_A_RECORD == 0) return;
    end_array();
    record_end();
}

static void list_drivers(efi_handle *handles, usize count) {
    for (usize i = 0; i < count; i++) {
        efi_pci_io *device;
        usize segment, bus, number, function;
        u32 header[HEADER_WORDS];
        if (boot->handle_protocol(handles[i], &pci_guid, (void **)&device) != EFI_SUCCESS) continue;
        if (device->get_location(device, &segment, &bus, &number, &function) != EFI_SUCCESS) continue;
        if (device->read(device, EFI_PCI_WIDTH_32, 0, HEADER_WORDS, header) != EFI_SUCCESS) continue;
        put_function((pci_place){(u32)segment, (u32)bus, (u32)number, (u32)function}, header);
    }
}

static void scan(const config_space *space) {
    for (u32 bus = space->first_bus; bus <= space->last_bus; bus++)
        for (u32 slot = 0; slot < 256 && found < MOST_FUNCTIONS; slot++) {
            pci_place place = {space->segment, bus, slot >> 3, slot & 7};
            u32 header[HEADER_WORDS];
            header[0] = space->read(space, place, 0);
            if (header[0] == ABSENT || !header[0]) {
                if (!place.function) slot |= 7; /* no function 0: no device */
                continue;
            }
            for (u32 i = 1; i < HEADER_WORDS; i++) header[i] = space->read(space, place, i * 4);
            put_function(place, header);
            if (!place.function && !(header[3] >> 23 & 1)) slot |= 7; /* one function only */
        }
}

static u32 read_by_bridge(const config_space *space, pci_place place, u32 offset) {
    u32 word;
    u64 address = (u64)place.bus << 24 | place.device << 16 | place.function << 8 | offset;
    efi_status status = space->bridge->read(space->bridge, EFI_PCI_WIDTH_32, address, 1, &word);
    return status == EFI_SUCCESS ? word : ABSENT;
}

/* PCI Express base specification, section 7.2.2. */
static u32 read_by_window(const config_space *space, pci_place place, u32 offset) {
    u64 within = (u64)(place.bus - space->first_bus) << 20 | place.device << 15 | place.function << 12 | offset;
    u32 word;
    return peek32(space->window + within, &word) ? word : ABSENT;
}

/* The buses of a root bridge: a QWord address space descriptor of type 2 (ACPI 6.5, section 6.4.3.5.1). */
static void take_buses(config_space *space) {
    void *resources;
    if (!space->bridge->configuration || space->bridge->configuration(space->bridge, &resources) != EFI_SUCCESS) return;
    const u8 *at = resources;
    for (u32 i = 0; i < 32 && at[0] == 0x8a; i++, at += 3 + (at[1] | (usize)at[2] << 8)) {
        if (at[3] != 2) continue;
        space->first_bus = (u32)read_le64(at + 14) & 255;
        space->last_bus = (u32)read_le64(at + 22) & 255;
        return;
    }
}

static const char *scan_bridges(efi_handle *handles, usize count) {
    for (usize i = 0; i < count; i++) {
        config_space space = {.read = read_by_bridge, .first_bus = 0, .last_bus = 255};
        if (boot->handle_protocol(handles[i], &root_bridge_guid, (void **)&space.bridge) != EFI_SUCCESS) continue;
        space.segment = space.bridge->segment;
        take_buses(&space);
        scan(&space);
    }
    return "root-bridge";
}

static const char *scan_window(void) {
    static const char *const names[] = {"pci-host-ecam-generic", 0};
    fdt_node node;
    if (!fdt_find(names, &node) || !node.count) return 0;
    config_space space = {.read = read_by_window, .first_bus = node.first_bus, .last_bus = node.last_bus};
    u64 buses = node.regions[0].size >> 20;
    if (!buses) return 0;
    if (space.last_bus - space.first_bus >= buses) space.last_bus = space.first_bus + (u32)buses - 1;
    space.window = node.regions[0].address;
    if (sizeof(usize) == 4 && (space.window + node.regions[0].size) >> 32) return 0;
    scan(&space);
    return "ecam";
}

test_result test_pci(void) {
    efi_handle *devices, *bridges;
    usize device_count = find_handles(&pci_guid, &devices), bridge_count = find_handles(&root_bridge_guid, &bridges);
    const char *method = "pci-io";
    found = 0;
    if (device_count)
        list_drivers(devices, device_count);
    else
        method = bridge_count ? scan_bridges(bridges, bridge_count) : scan_window();
    finish_functions();
    record_begin("pci");
    put_number("root_bridges", bridge_count);
    put_number("count", found);
    if (method)
        put_text("method", method);
    else
        put_null("method");
    record_end();
    if (device_count) boot->free_pool(devices);
    if (bridge_count) boot->free_pool(bridges);
    return method ? DONE : SKIPPED;
}
