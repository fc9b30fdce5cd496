/* The tests "console", "block" and "network": the handles that carry a protocol. */
#include "probe.h"

#define MOST_HANDLES 256
#define MOST_CONSOLES 16
#define MOST_PATH 512

static const efi_guid path_guid = EFI_DEVICE_PATH_GUID;
static const efi_guid text_output_guid = EFI_TEXT_OUTPUT_GUID;
static const efi_guid serial_guid = EFI_SERIAL_IO_GUID;
static const efi_guid block_guid = EFI_BLOCK_IO_GUID;
static const efi_guid network_guid = EFI_NETWORK_GUID;

usize find_handles(const efi_guid *protocol, efi_handle **handles) {
    usize count = 0;
    efi_status status = boot->locate_handle_buffer(EFI_BY_PROTOCOL, protocol, 0, &count, handles);
    if (status != EFI_SUCCESS) return 0;
    return count < MOST_HANDLES ? count : MOST_HANDLES;
}

/* With the end node, or what fits into MOST_PATH. */
static usize path_size(const efi_device_path *path) {
    const u8 *start = (const u8 *)path;
    usize size = 0;
    if (!path) return 0;
    for (;;) {
        const efi_device_path *node = (const efi_device_path *)(start + size);
        usize length = node->length[0] | (usize)node->length[1] << 8;
        if (length < sizeof *node || size + length > MOST_PATH) return size;
        size += length;
        if (node->type == EFI_PATH_END && node->subtype == EFI_PATH_END_ENTIRE) return size;
    }
}

static const efi_device_path *path_of(efi_handle handle) {
    void *path;
    if (!handle || boot->handle_protocol(handle, &path_guid, &path) != EFI_SUCCESS) return 0;
    return path;
}

/*
 * Firmware that was told where to boot from may have started the drivers of that device only: here all of them are.
 * Where that ended an earlier run, the devices that are there have to do.
 */
static void connect_devices(void) {
    static int connected;
    efi_handle *handles;
    if (connected || in_list(crashed_tests, "block")) return;
    connected = 1;
    usize count = find_handles(&path_guid, &handles);
    for (usize i = 0; i < count; i++) boot->connect_controller(handles[i], 0, 0, 1);
    if (count) boot->free_pool(handles);
}

static void put_path(const char *key, efi_handle handle) {
    const efi_device_path *path = path_of(handle);
    put_bytes(key, path, path_size(path));
}

static void put_active_output(void) {
    static u8 paths[MOST_PATH];
    usize size = sizeof paths;
    u32 attributes;
    if (runtime->get_variable(u"ConOut", &global_guid, &attributes, &size, paths) == EFI_SUCCESS)
        put_bytes("active_out_hex", paths, size);
    else
        put_path("active_out_hex", firmware->console_out_handle);
}

test_result test_console(void) {
    efi_handle *handles;
    usize count = find_handles(&text_output_guid, &handles);
    record_begin("console");
    begin_array("out");
    for (usize i = 0; i < count && i < MOST_CONSOLES; i++) put_path(0, handles[i]);
    end_array();
    if (count) boot->free_pool(handles);
    count = find_handles(&serial_guid, &handles);
    begin_array("serial");
    for (usize i = 0; i < count && i < MOST_CONSOLES; i++) {
        efi_serial_io *serial;
        if (boot->handle_protocol(handles[i], &serial_guid, (void **)&serial) != EFI_SUCCESS) continue;
        begin_object(0);
        put_path("path_hex", handles[i]);
        if (serial->mode) put_number("baud", serial->mode->baud_rate);
        end_object();
    }
    end_array();
    if (count) boot->free_pool(handles);
    put_active_output();
    record_end();
    return DONE;
}

/* Whether the probe came from that device: its own partition, and the disk that holds it. */
static int is_own(efi_handle handle) {
    const efi_device_path *path = path_of(handle), *own = path_of(self->device);
    usize size = path_size(path);
    if (handle == self->device) return 1;
    if (size <= sizeof *path || size > path_size(own)) return 0;
    return same_bytes(path, own, size - sizeof *path);
}

test_result test_block(void) {
    efi_handle *handles;
    connect_devices();
    usize count = find_handles(&block_guid, &handles);
    for (usize i = 0; i < count; i++) {
        efi_block_io *block;
        if (boot->handle_protocol(handles[i], &block_guid, (void **)&block) != EFI_SUCCESS || !block->media) continue;
        record_begin("block");
        put_path("path_hex", handles[i]);
        put_number("media_id", block->media->media_id);
        put_bool("removable", block->media->removable);
        put_bool("present", block->media->present);
        put_bool("partition", block->media->partition);
        put_bool("read_only", block->media->read_only);
        put_number("block_size", block->media->block_size);
        put_number("last_block", block->media->last_block);
        put_bool("own", is_own(handles[i]));
        record_end();
    }
    if (count) boot->free_pool(handles);
    return count ? DONE : SKIPPED;
}

/* The interface of a handle, 0 for none; also where one of the handles before it has the same (network boot's have). */
static efi_network *own_network(const efi_handle *handles, usize index) {
    efi_network *network, *other;
    if (boot->handle_protocol(handles[index], &network_guid, (void **)&network) != EFI_SUCCESS) return 0;
    for (usize i = 0; i < index; i++) {
        efi_status status = boot->handle_protocol(handles[i], &network_guid, (void **)&other);
        if (status == EFI_SUCCESS && other == network) return 0;
    }
    return network;
}

test_result test_network(void) {
    efi_handle *handles;
    connect_devices();
    usize count = find_handles(&network_guid, &handles);
    for (usize i = 0; i < count; i++) {
        efi_network *network = own_network(handles, i);
        if (!network || !network->mode) continue;
        u32 size = network->mode->address_size;
        record_begin("network");
        put_path("path_hex", handles[i]);
        put_bytes("mac_hex", network->mode->address, size < 32 ? size : 32);
        put_bool("media_present", network->mode->media_present);
        record_end();
    }
    if (count) boot->free_pool(handles);
    return count ? DONE : SKIPPED;
}
