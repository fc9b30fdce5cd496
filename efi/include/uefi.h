/*
 * The part of UEFI 2.10 that our programs use, for freestanding C on AArch64 and AArch32 (Thumb-2).
 *
 * Tables are laid out member by member as in the specification; what nobody here calls is a void pointer. Calls
 * through these pointers need no attribute: UEFI's calling convention is the AAPCS in both states (sections 2.3.5 and
 * 2.3.6).
 */
#ifndef ARMVM_UEFI_H
#define ARMVM_UEFI_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef __SIZE_TYPE__ usize;

typedef usize efi_status;
typedef u16 efi_char;
typedef void *efi_handle;
typedef void *efi_event;

#define EFI_ERROR(code) (((usize)1 << (sizeof(usize) * 8 - 1)) | (code))
#define EFI_SUCCESS 0
#define EFI_LOAD_ERROR EFI_ERROR(1)
#define EFI_INVALID_PARAMETER EFI_ERROR(2)
#define EFI_UNSUPPORTED EFI_ERROR(3)
#define EFI_BUFFER_TOO_SMALL EFI_ERROR(5)
#define EFI_WRITE_PROTECTED EFI_ERROR(8)
#define EFI_OUT_OF_RESOURCES EFI_ERROR(9)
#define EFI_NOT_FOUND EFI_ERROR(14)
#define EFI_SECURITY_VIOLATION EFI_ERROR(26)

typedef struct {
    u32 a;
    u16 b, c;
    u8 d[8];
} efi_guid;

#define EFI_LOADED_IMAGE_GUID {0x5b1b31a1, 0x9562, 0x11d2, {0x8e, 0x3f, 0x00, 0xa0, 0xc9, 0x69, 0x72, 0x3b}}
#define EFI_DEVICE_PATH_GUID {0x09576e91, 0x6d3f, 0x11d2, {0x8e, 0x39, 0x00, 0xa0, 0xc9, 0x69, 0x72, 0x3b}}
#define EFI_LOAD_FILE2_GUID {0x4006c0c1, 0xfcb3, 0x403e, {0x99, 0x6d, 0x4a, 0x6c, 0x87, 0x24, 0xe0, 0x6d}}

typedef struct {
    u64 signature;
    u32 revision, header_size, crc32, reserved;
} efi_table_header;

/* Section 10.3: one node; length counts these four bytes too. */
typedef struct {
    u8 type, subtype;
    u8 length[2];
} efi_device_path;

#define EFI_PATH_HARDWARE 0x01
#define EFI_PATH_MEMORY_MAPPED 0x03
#define EFI_PATH_MEDIA 0x04
#define EFI_PATH_VENDOR 0x03
#define EFI_PATH_END 0x7f
#define EFI_PATH_END_ENTIRE 0xff

/* Section 12.4. */
typedef struct efi_text_output {
    void *reset;
    efi_status (*output_string)(struct efi_text_output *, const efi_char *);
    void *test_string, *query_mode, *set_mode, *set_attribute, *clear_screen, *set_cursor_position, *enable_cursor;
    void *mode;
} efi_text_output;

/* Section 13.2: the signature of LoadFile2 (boot policy is always false for it). */
typedef struct efi_load_file {
    efi_status (*load_file)(struct efi_load_file *, efi_device_path *, u8 boot_policy, usize *size, void *buffer);
} efi_load_file;

#define EFI_LOADER_DATA 2
#define EFI_NATIVE_INTERFACE 0
#define EFI_BY_PROTOCOL 2
#define EFI_EVENT_TIMER 0x80000000u
#define EFI_TIMER_RELATIVE 2
#define EFI_TPL_APPLICATION 4
#define EFI_TPL_CALLBACK 8
#define EFI_TPL_HIGH_LEVEL 31

/* Section 4.4 and chapter 7. */
typedef struct {
    efi_table_header header;
    usize (*raise_tpl)(usize level);
    void (*restore_tpl)(usize level);
    void *allocate_pages, *free_pages;
    efi_status (*get_memory_map)(usize *size, void *map, usize *key, usize *descriptor_size, u32 *version);
    efi_status (*allocate_pool)(u32 type, usize size, void **buffer);
    efi_status (*free_pool)(void *);
    efi_status (*create_event)(u32 type, usize level, void *notify, void *context, efi_event *event);
    efi_status (*set_timer)(efi_event, u32 kind, u64 hundred_nanoseconds);
    void *wait_for_event, *signal_event;
    efi_status (*close_event)(efi_event);
    efi_status (*check_event)(efi_event);
    efi_status (*install_protocol)(efi_handle *, const efi_guid *, u32 interface_type, void *interface);
    void *reinstall_protocol;
    efi_status (*uninstall_protocol)(efi_handle, const efi_guid *, void *interface);
    efi_status (*handle_protocol)(efi_handle, const efi_guid *, void **interface);
    void *reserved, *register_protocol_notify, *locate_handle;
    efi_status (*locate_device_path)(const efi_guid *, efi_device_path **, efi_handle *);
    void *install_configuration_table;
    efi_status (*load_image)(u8 boot_policy, efi_handle parent, efi_device_path *, void *source, usize size,
                             efi_handle *image);
    efi_status (*start_image)(efi_handle, usize *exit_data_size, efi_char **exit_data);
    void *exit;
    efi_status (*unload_image)(efi_handle);
    void *exit_boot_services, *get_next_monotonic_count;
    efi_status (*stall)(usize microseconds);
    efi_status (*set_watchdog_timer)(usize seconds, u64 code, usize data_size, efi_char *data);
    efi_status (*connect_controller)(efi_handle, efi_handle *drivers, efi_device_path *, u8 recursive);
    void *disconnect_controller, *open_protocol, *close_protocol;
    void *open_protocol_information, *protocols_per_handle;
    efi_status (*locate_handle_buffer)(u32 search, const efi_guid *, void *key, usize *count, efi_handle **handles);
    void *locate_protocol;
    void *install_multiple, *uninstall_multiple, *calculate_crc32;
    void (*copy_mem)(void *destination, const void *source, usize length);
} efi_boot_services;

/* Section 8.3. */
typedef struct {
    u16 year;
    u8 month, day, hour, minute, second, pad1;
    u32 nanosecond;
    short zone; /* minutes */
    u8 daylight, pad2;
} efi_time;

typedef struct {
    u32 resolution, accuracy;
    u8 sets_to_zero;
} efi_time_capabilities;

#define EFI_VARIABLE_NON_VOLATILE 1
#define EFI_VARIABLE_BOOT_SERVICE 2
#define EFI_VARIABLE_RUNTIME 4

#define EFI_RESET_COLD 0
#define EFI_RESET_SHUTDOWN 2

/* Section 4.5 and chapter 8. */
typedef struct {
    efi_table_header header;
    efi_status (*get_time)(efi_time *, efi_time_capabilities *);
    efi_status (*set_time)(efi_time *);
    void *get_wakeup_time, *set_wakeup_time, *set_virtual_address_map, *convert_pointer;
    efi_status (*get_variable)(const efi_char *name, const efi_guid *, u32 *attributes, usize *size, void *data);
    efi_status (*get_next_variable_name)(usize *size, efi_char *name, efi_guid *);
    efi_status (*set_variable)(const efi_char *name, const efi_guid *, u32 attributes, usize size, const void *data);
    void *get_next_high_monotonic_count;
    void (*reset_system)(u32 kind, efi_status, usize data_size, void *data);
    void *update_capsule, *query_capsule_capabilities;
    efi_status (*query_variable_info)(u32 attributes, u64 *maximum, u64 *remaining, u64 *largest);
} efi_runtime_services;

/* Section 4.6. */
typedef struct {
    efi_guid guid;
    void *table;
} efi_configuration_table;

/* Section 4.3. */
typedef struct {
    efi_table_header header;
    efi_char *firmware_vendor;
    u32 firmware_revision;
    efi_handle console_in_handle;
    void *console_in;
    efi_handle console_out_handle;
    efi_text_output *console_out;
    efi_handle standard_error_handle;
    efi_text_output *standard_error;
    efi_runtime_services *runtime_services;
    efi_boot_services *boot_services;
    usize configuration_table_count;
    efi_configuration_table *configuration_tables;
} efi_system_table;

/* Section 9.1. */
typedef struct {
    u32 revision;
    efi_handle parent;
    efi_system_table *system_table;
    efi_handle device;
    efi_device_path *file_path;
    void *reserved;
    u32 load_options_size;
    void *load_options;
    void *image_base;
    u64 image_size;
    u32 code_type, data_type;
    void *unload;
} efi_loaded_image;

#endif
