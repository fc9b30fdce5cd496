/*
 * The EFI probe: reports what a virtual machine looks like from inside (docs/probe-wire.md).
 *
 * One file per test; what they share is declared here. Nothing that firmware hands over is trusted: lengths have
 * bounds, addresses are tried (readable, peek32) before they are followed.
 */
#ifndef ARMVM_PROBE_H
#define ARMVM_PROBE_H

#include "uefi_devices.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

extern efi_system_table *firmware;
extern efi_boot_services *boot;
extern efi_runtime_services *runtime;
extern efi_loaded_image *self;

extern const efi_guid global_guid; /* of the variables that UEFI defines */
extern const efi_guid probe_guid;  /* of the probe's own variables */

/* base.c: what a C library would give. */
int same_bytes(const void *one, const void *other, usize length);
int same_guid(const efi_guid *one, const efi_guid *other);
int same_text(const char *one, const char *other);
int in_list(const char *list, const char *word); /* of a list separated by commas */
u64 divide(u64 value, u32 divisor, u32 *rest);   /* the compiler's own is not there on AArch32 */
u32 crc32(u32 crc, const void *data, usize length);
u32 read_le32(const u8 *at);
u64 read_le64(const u8 *at);
u32 read_be32(const u8 *at);

/* wire.c: a record is begun, filled and ended; then its lines are said. A key of 0 is for items of an array. */
void record_begin(const char *type);
void record_end(void);
void record_drop(void); /* after a fault: what was begun is not said */
void put_number(const char *key, u64 value);
void put_signed(const char *key, int value);
void put_hex(const char *key, u64 value);
void put_bool(const char *key, int value);
void put_null(const char *key);
void put_text(const char *key, const char *text);
void put_span(const char *key, const char *text, usize limit); /* ends at a zero byte or at the limit */
void put_utf16(const char *key, const efi_char *text, usize limit);
void put_bytes(const char *key, const void *data, usize length); /* hexadecimal */
void put_base64(const char *key, const void *data, usize length);
void put_guid(const char *key, const efi_guid *);
void put_status(const char *key, efi_status);
void begin_array(const char *key);
void end_array(void);
void begin_object(const char *key);
void end_object(void);

/* media.c: files in \ARMVM on the probe's own ESP. */
typedef struct {
    int file;          /* the ESP can be written */
    efi_status status; /* why not */
} media_state;

extern media_state media;
void media_open(void); /* opens the folder; makes it if need be */
void media_close(void);
usize media_load(const efi_char *name, char *text, usize size); /* a text's length; 0 when it cannot be read */
efi_status media_store(const efi_char *name, const void *data, usize length);   /* over what is there; makes it */
efi_status media_replace(const efi_char *name, const void *data, usize length); /* anew */
void media_start_run(u32 run);
void media_say(const void *data, usize length); /* to the file of this run */
void media_flush(void);
int media_has_variable_file(void); /* U-Boot's, on any file system */

/* state.c: what is kept from one run to the next, and what CONFIG.TXT asks for. */
typedef enum { END_SHUTDOWN, END_RESET, END_RETURN, END_HALT } run_end;
typedef enum { CRASH_HANG, CRASH_FAULT, CRASH_ABORT } crash_kind;

typedef struct {
    u32 runs;
    u32 brief; /* runs after this one are brief; 0: none are */
    run_end end;
    char skip[256];
    char crash[32];
    crash_kind crash_kind;
} probe_config;

extern probe_config config;
extern u32 run_number;
extern const char *run_reason;
extern char crashed_tests[256];

void state_load(void);              /* reads both, counts this run, finds out which test the last one ended in */
void state_enter(const char *test); /* a test is under way */
const char *state_finish(void);     /* all are done; how this run is to end */

/* fault.c: exceptions become return values. AArch32 has no such net: there they end the run. */
typedef struct {
    u64 esr, far, elr;
} fault;

int catch_fault(void (*body)(void *), void *argument, fault *caught); /* true when there was one */
int peek32(u64 address, u32 *value);                                  /* a device register; false when it faults */
int readable(u64 address, u64 size);                                  /* memory that may be followed */
u64 firmware_vbar(void);

/* The generic timer (Arm ARM, D11): zero where there is none (AArch32 without the extension). */
int has_counter(void);
u64 counter(void);
u32 counter_frequency(void);
u64 milliseconds_of(u64 ticks);

/* memory.c */
int in_memory_map(u64 address, u64 size);

/* system.c */
void *find_table(const efi_guid *);

/* fdt.c: the device tree, once it was found sound. */
typedef struct {
    u64 address, size;
} fdt_region;

typedef struct {
    const char *compatible; /* the one that was asked for */
    fdt_region regions[4];
    u32 count;
    u32 first_bus, last_bus; /* of a PCI host bridge */
} fdt_node;

/* The first node that is compatible with one of the names (the list ends with 0). */
int fdt_find(const char *const *compatible, fdt_node *node);

/* acpi.c */
const u8 *acpi_find(const char *signature, u32 *length);

/* devices.c */
usize find_handles(const efi_guid *protocol, efi_handle **handles); /* at most 256; free_pool the list if any */

/* The tests. */
typedef enum { DONE, SKIPPED } test_result;

test_result test_system(void), test_cpu(void), test_tables(void), test_fdt(void), test_acpi(void), test_smbios(void);
test_result test_memory(void), test_console(void), test_block(void), test_network(void), test_pci(void);
test_result test_variables(void), test_rtc(void), test_counter(void), test_gic(void), test_timer(void);

#endif
