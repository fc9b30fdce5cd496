/*
 * The boot stub of a unified kernel image: one EFI program that carries a Linux kernel, its initial RAM disk and its
 * command line as PE sections (.linux, .initrd, .cmdline), and starts the kernel through the firmware.
 *
 * The initial RAM disk is offered as Linux asks for it since 5.8: LoadFile2 on a device path of its own vendor GUID.
 * The built-in command line wins; without one, load options that are text are handed on.
 */
#include "uefi.h"

typedef struct {
    const u8 *data;
    usize size;
} span;

typedef struct {
    usize offset;
    u32 count;
} section_table;

typedef struct {
    efi_load_file protocol;
    span content;
} initrd_source;

static efi_system_table *firmware;
static efi_boot_services *boot;

static const efi_guid loaded_image_guid = EFI_LOADED_IMAGE_GUID;
static const efi_guid device_path_guid = EFI_DEVICE_PATH_GUID;
static const efi_guid load_file2_guid = EFI_LOAD_FILE2_GUID;

/* Linux: LINUX_EFI_INITRD_MEDIA_GUID. */
static struct {
    efi_device_path head;
    efi_guid vendor;
    efi_device_path end;
} initrd_path = {
    {EFI_PATH_MEDIA, EFI_PATH_VENDOR, {sizeof(efi_device_path) + sizeof(efi_guid), 0}},
    {0x5568e427, 0x68fc, 0x4f3d, {0xac, 0x74, 0xca, 0x55, 0x52, 0x31, 0xcc, 0x68}},
    {EFI_PATH_END, EFI_PATH_END_ENTIRE, {sizeof(efi_device_path), 0}},
};

/* Where the kernel is loaded from (section 10.3.2.3). */
static struct {
    efi_device_path head;
    u32 memory_type;
    u64 start, last;
    efi_device_path end;
} kernel_path = {
    {EFI_PATH_HARDWARE, EFI_PATH_MEMORY_MAPPED, {24, 0}},
    EFI_LOADER_DATA,
    0,
    0,
    {EFI_PATH_END, EFI_PATH_END_ENTIRE, {sizeof(efi_device_path), 0}},
};

static void say(const char *text) {
    efi_char line[160];
    usize length = 0;
    while (*text && length < sizeof line / sizeof *line - 1) line[length++] = (u8)*text++;
    line[length] = 0;
    if (firmware->console_out) firmware->console_out->output_string(firmware->console_out, line);
}

/* Says what failed, waits so that it can be read on a screen that firmware clears next, and hands the status back. */
static efi_status fail(const char *what, efi_status status) {
    char hex[sizeof status * 2 + 1];
    for (usize i = 0; i < sizeof status * 2; i++)
        hex[i] = "0123456789abcdef"[status >> ((sizeof status * 2 - 1 - i) * 4) & 15];
    hex[sizeof status * 2] = 0;
    say("armvm stub: ");
    say(what);
    say(" (status 0x");
    say(hex);
    say(")\r\n");
    boot->stall(2000000);
    return status;
}

static u32 read_u16(const u8 *at) { return at[0] | (u32)at[1] << 8; }

static u32 read_u32(const u8 *at) { return read_u16(at) | read_u16(at + 2) << 16; }

static int same_name(const u8 *field, const char *name) {
    for (usize i = 0; i < 8; i++) {
        if (field[i] != (u8)*name) return 0;
        if (*name) name++;
    }
    return 1;
}

/* Where the section headers of a PE image stand; no sections when they lie outside. */
static section_table find_table(const u8 *base, u64 size) {
    const section_table none = {0, 0};
    if (size < 64) return none;
    u64 header = read_u32(base + 0x3c);
    if (header + 24 + 60 > size) return none;
    u64 offset = header + 24 + read_u16(base + header + 20);
    u32 count = read_u16(base + header + 6);
    if (offset + (u64)count * 40 > size) return none;
    return (section_table){(usize)offset, count};
}

/* The section of that name in this program as firmware has loaded it; empty when there is none or it lies outside. */
static span find_section(const efi_loaded_image *self, const char *name) {
    const u8 *base = self->image_base;
    const span none = {0, 0};
    section_table table = find_table(base, self->image_size);
    for (const u8 *entry = base + table.offset; table.count--; entry += 40) {
        u32 size = read_u32(entry + 8), address = read_u32(entry + 12);
        if (!same_name(entry, name)) continue;
        if (!size || (u64)address + size > self->image_size) return none;
        return (span){base + address, size};
    }
    return none;
}

#ifdef __aarch64__

static efi_status with_heap(span *linux, void **memory) {
    (void)linux;
    (void)memory;
    return EFI_SUCCESS;
}

#else

static void write_u32(u8 *at, u32 value) {
    for (u32 i = 0; i < 4; i++) at[i] = (u8)(value >> i * 8);
}

#define HEAP_SIZE 0x10000 /* MALLOC_SIZE in Linux's arch/arm/boot/compressed/head.S */

/*
 * A zImage unpacks the kernel with a heap that begins where its last section ends and that its headers do not mention.
 * There firmware may well put this very program, write-protected (EDK2 does). So the kernel is loaded from a copy, in
 * pool memory that the caller frees, whose last section is longer by that heap.
 */
static efi_status with_heap(span *linux, void **memory) {
    u8 *last = 0, *copy, *optional;
    u32 end = 0;
    if (linux->size < 64 || read_u32(linux->data + 0x24) != 0x016f2818) return EFI_SUCCESS;
    section_table table = find_table(linux->data, linux->size);
    if (!table.count) return EFI_SUCCESS;

    efi_status status = boot->allocate_pool(EFI_LOADER_DATA, linux->size, memory);
    if (status != EFI_SUCCESS) return status;
    copy = *memory;
    boot->copy_mem(copy, linux->data, linux->size);
    for (u8 *entry = copy + table.offset; table.count--; entry += 40) {
        u32 size = read_u32(entry + 8), address = read_u32(entry + 12);
        if (address + size < end) continue;
        last = entry;
        end = address + size;
    }
    end += HEAP_SIZE;
    write_u32(last + 8, end - read_u32(last + 12));
    optional = copy + read_u32(copy + 0x3c) + 24;
    write_u32(optional + 56 /* SizeOfImage, in PE32 and PE32+ alike */, (end + 4095) & ~4095u);
    linux->data = copy;
    return EFI_SUCCESS;
}

#endif

static efi_status load_initrd(efi_load_file *this, efi_device_path *path, u8 boot_policy, usize *size, void *buffer) {
    if (!this || !size || !path) return EFI_INVALID_PARAMETER;
    if (boot_policy) return EFI_UNSUPPORTED;
    span content = ((initrd_source *)this)->content;
    if (!buffer || *size < content.size) {
        *size = content.size;
        return EFI_BUFFER_TOO_SMALL;
    }
    boot->copy_mem(buffer, content.data, content.size);
    *size = content.size;
    return EFI_SUCCESS;
}

static initrd_source initrd = {{load_initrd}, {0, 0}};

/* Leaves the null handle when a loader before us offers an initial RAM disk already: two would contradict. */
static efi_status offer_initrd(span content, efi_handle *handle) {
    efi_device_path *path = &initrd_path.head;
    efi_handle other = 0;
    if (!content.size) return EFI_SUCCESS;
    if (boot->locate_device_path(&load_file2_guid, &path, &other) == EFI_SUCCESS) {
        say("armvm stub: an initial RAM disk is offered already, the built-in one is not used\r\n");
        return EFI_SUCCESS;
    }
    initrd.content = content;
    efi_status status = boot->install_protocol(handle, &device_path_guid, EFI_NATIVE_INTERFACE, &initrd_path);
    if (status != EFI_SUCCESS) return status;
    status = boot->install_protocol(handle, &load_file2_guid, EFI_NATIVE_INTERFACE, &initrd.protocol);
    if (status != EFI_SUCCESS) {
        boot->uninstall_protocol(*handle, &device_path_guid, &initrd_path);
        *handle = 0;
    }
    return status;
}

static void withdraw_initrd(efi_handle handle) {
    if (!handle) return;
    boot->uninstall_protocol(handle, &load_file2_guid, &initrd.protocol);
    boot->uninstall_protocol(handle, &device_path_guid, &initrd_path);
}

/* One character of UTF-8, moving *at past it. What is no UTF-8 becomes U+FFFD, one byte at a time. */
static u32 next_character(const u8 **at, const u8 *end) {
    u32 first = *(*at)++, extra = first >= 0xf0 ? 3 : first >= 0xe0 ? 2 : 1;
    const u8 *rest = *at;
    if (first < 0x80) return first;
    if (first < 0xc2 || first > 0xf4 || (usize)(end - rest) < extra) return 0xfffd;
    u32 value = first & (0x3f >> extra);
    for (u32 i = 0; i < extra; i++) {
        if ((rest[i] & 0xc0) != 0x80) return 0xfffd;
        value = value << 6 | (rest[i] & 0x3f);
    }
    *at += extra;
    return value;
}

/* Makes the text the kernel's load options, as UTF-16 in pool memory that the caller frees. */
static efi_status set_command_line(span text, efi_loaded_image *kernel, void **memory) {
    efi_char *line;
    usize length = 0;
    efi_status status = boot->allocate_pool(EFI_LOADER_DATA, (text.size + 1) * sizeof *line, memory);
    if (status != EFI_SUCCESS) return status;
    line = *memory;
    for (const u8 *at = text.data, *end = at + text.size; at < end && *at;) {
        u32 character = next_character(&at, end);
        if (character < ' ') character = ' '; /* files of one line end in a line feed */
        if (character >= 0x10000) {
            line[length++] = (efi_char)(0xd800 + ((character - 0x10000) >> 10));
            character = 0xdc00 + (character & 0x3ff);
        }
        line[length++] = (efi_char)character;
    }
    line[length++] = 0;
    kernel->load_options = line;
    kernel->load_options_size = (u32)(length * sizeof *line);
    return EFI_SUCCESS;
}

/* Boot options may carry any bytes as their data; only text that ends as text does is a command line. */
static int is_text(const efi_char *options, u32 size) {
    u32 length = size / sizeof *options;
    if (!options || !length || size % sizeof *options || options[length - 1]) return 0;
    for (u32 i = 0; i < length - 1; i++)
        if (options[i] < ' ') return 0;
    return 1;
}

static efi_status set_options(efi_handle kernel, const efi_loaded_image *self, void **memory) {
    efi_loaded_image *loaded;
    efi_status status = boot->handle_protocol(kernel, &loaded_image_guid, (void **)&loaded);
    if (status != EFI_SUCCESS) return status;
    span text = find_section(self, ".cmdline");
    if (text.size) return set_command_line(text, loaded, memory);
    if (is_text(self->load_options, self->load_options_size)) {
        loaded->load_options = self->load_options;
        loaded->load_options_size = self->load_options_size;
    }
    return EFI_SUCCESS;
}

/* Loads the kernel from memory; a path to where it comes from is asked for here too. */
static efi_status load_kernel(efi_handle image, span linux, efi_handle *kernel) {
    void *copy = 0;
    efi_status status = with_heap(&linux, &copy);
    if (status != EFI_SUCCESS) return status;
    kernel_path.start = (usize)linux.data;
    kernel_path.last = (usize)linux.data + linux.size - 1;
    status = boot->load_image(0, image, &kernel_path.head, (void *)linux.data, linux.size, kernel);
    if (status == EFI_SECURITY_VIOLATION) boot->unload_image(*kernel);
    if (copy) boot->free_pool(copy);
    return status;
}

efi_status EfiMain(efi_handle image, efi_system_table *system_table) {
    efi_loaded_image *self;
    efi_handle kernel = 0, initrd_handle = 0;
    void *command_line = 0;
    const char *what;
    firmware = system_table;
    boot = system_table->boot_services;

    efi_status status = boot->handle_protocol(image, &loaded_image_guid, (void **)&self);
    if (status != EFI_SUCCESS) return fail("firmware does not say where this program is", status);
    span linux = find_section(self, ".linux");
    if (!linux.size) return fail("this program holds no kernel (section .linux)", EFI_NOT_FOUND);
    status = load_kernel(image, linux, &kernel);
    if (status != EFI_SUCCESS) return fail("firmware does not load the kernel", status);

    status = set_options(kernel, self, &command_line);
    if (status == EFI_SUCCESS) status = offer_initrd(find_section(self, ".initrd"), &initrd_handle);
    if (status == EFI_SUCCESS) {
        status = boot->start_image(kernel, 0, 0);
        what = "the kernel did not start";
    } else {
        boot->unload_image(kernel);
        what = "the kernel cannot be given its command line or initial RAM disk";
    }
    withdraw_initrd(initrd_handle);
    if (command_line) boot->free_pool(command_line);
    return status == EFI_SUCCESS ? status : fail(what, status);
}
