/* The protocols of UEFI 2.10 by which our programs look at files and devices, laid out as in uefi.h. */
#ifndef ARMVM_UEFI_DEVICES_H
#define ARMVM_UEFI_DEVICES_H

#include "uefi.h"

#define EFI_FILE_SYSTEM_GUID {0x964e5b22, 0x6459, 0x11d2, {0x8e, 0x39, 0x00, 0xa0, 0xc9, 0x69, 0x72, 0x3b}}
#define EFI_BLOCK_IO_GUID {0x964e5b21, 0x6459, 0x11d2, {0x8e, 0x39, 0x00, 0xa0, 0xc9, 0x69, 0x72, 0x3b}}
#define EFI_NETWORK_GUID {0xa19832b9, 0xac25, 0x11d3, {0x9a, 0x2d, 0x00, 0x90, 0x27, 0x3f, 0xc1, 0x4d}}
#define EFI_SERIAL_IO_GUID {0xbb25cf6f, 0xf1d4, 0x11d2, {0x9a, 0x0c, 0x00, 0x90, 0x27, 0x3f, 0xc1, 0xfd}}
#define EFI_TEXT_OUTPUT_GUID {0x387477c2, 0x69c7, 0x11d2, {0x8e, 0x39, 0x00, 0xa0, 0xc9, 0x69, 0x72, 0x3b}}
#define EFI_PCI_IO_GUID {0x4cf5b200, 0x68b8, 0x4ca5, {0x9e, 0xec, 0xb2, 0x3e, 0x3f, 0x50, 0x02, 0x9a}}
#define EFI_PCI_ROOT_BRIDGE_IO_GUID {0x2f707ebb, 0x4a1a, 0x11d4, {0x9a, 0x38, 0x00, 0x90, 0x27, 0x3f, 0xc1, 0x4d}}

#define EFI_FILE_READ 1ull
#define EFI_FILE_WRITE 2ull
#define EFI_FILE_CREATE 0x8000000000000000ull
#define EFI_FILE_DIRECTORY 0x10ull

/* Section 13.5. */
typedef struct efi_file {
    u64 revision;
    efi_status (*open)(struct efi_file *, struct efi_file **, const efi_char *, u64 mode, u64 attributes);
    efi_status (*close)(struct efi_file *);
    efi_status (*delete)(struct efi_file *);
    efi_status (*read)(struct efi_file *, usize *, void *);
    efi_status (*write)(struct efi_file *, usize *, const void *);
    void *get_position, *set_position, *get_info, *set_info;
    efi_status (*flush)(struct efi_file *);
} efi_file;

/* Section 13.4. */
typedef struct efi_file_system {
    u64 revision;
    efi_status (*open_volume)(struct efi_file_system *, efi_file **);
} efi_file_system;

/* Section 13.9. */
typedef struct {
    u32 media_id;
    u8 removable, present, partition, read_only, write_caching;
    u32 block_size, io_align;
    u64 last_block;
} efi_block_media;

typedef struct {
    u64 revision;
    efi_block_media *media;
} efi_block_io;

/* Section 12.8. */
typedef struct {
    u32 control_mask, timeout;
    u64 baud_rate;
} efi_serial_mode;

typedef struct {
    u32 revision;
    void *reset, *set_attributes, *set_control, *get_control, *write, *read;
    efi_serial_mode *mode;
} efi_serial_io;

/* Section 24.1. */
typedef struct {
    u32 state, address_size, header_size, packet_size, nvram_size, nvram_access_size;
    u32 filter_mask, filter, multicast_limit, multicast_count;
    u8 multicast[16][32];
    u8 address[32], broadcast[32], permanent[32];
    u8 interface_type, address_changeable, multiple_transmit, media_detected, media_present;
} efi_network_mode;

typedef struct {
    u64 revision;
    void *functions[13], *wait_for_packet;
    efi_network_mode *mode;
} efi_network;

#define EFI_PCI_WIDTH_32 2

/* Section 14.4. */
typedef struct efi_pci_io {
    void *poll[2], *memory[2], *io[2];
    efi_status (*read)(struct efi_pci_io *, u32 width, u32 offset, usize count, void *);
    void *write, *copy, *map, *unmap, *allocate, *free, *flush;
    efi_status (*get_location)(struct efi_pci_io *, usize *segment, usize *bus, usize *device, usize *function);
} efi_pci_io;

/* Section 14.2. */
typedef struct efi_pci_root_bridge_io {
    efi_handle parent;
    void *poll[2], *memory[2], *io[2];
    efi_status (*read)(struct efi_pci_root_bridge_io *, u32 width, u64 address, usize count, void *);
    void *write, *copy, *map, *unmap, *allocate, *free, *flush, *get_attributes, *set_attributes;
    efi_status (*configuration)(struct efi_pci_root_bridge_io *, void **resources);
    u32 segment;
} efi_pci_root_bridge_io;

#endif
