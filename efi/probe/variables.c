/* The test "variables": what firmware boots by, what its store has room for, and one variable of our own. */
#include "arch.h"
#include "probe.h"

#define MOST_VARIABLES 512 /* looked at */
#define MOST_SHOWN 96
#define MOST_DATA 512
#define NAME_SIZE 2048

/* What ArmvmProbe holds. */
typedef struct {
    u32 run;
    u8 nonce[16];
} mark;

#define MARK_ATTRIBUTES (EFI_VARIABLE_NON_VOLATILE | EFI_VARIABLE_BOOT_SERVICE | EFI_VARIABLE_RUNTIME)

static const efi_char mark_name[] = u"ArmvmProbe";

static void put_variable(const efi_char *name) {
    static u8 data[4096];
    usize size = sizeof data;
    u32 attributes = 0;
    efi_status status = runtime->get_variable(name, &global_guid, &attributes, &size, data);
    record_begin("variable-boot");
    put_utf16("name", name, 64);
    if (status == EFI_SUCCESS) {
        put_number("attributes", attributes);
        put_bytes("data_hex", data, size < MOST_DATA ? size : MOST_DATA);
        put_number("size", size);
    } else {
        put_status("status", status);
        if (status == EFI_BUFFER_TOO_SMALL) put_number("size", size);
    }
    record_end();
}

static void list_variables(void) {
    static efi_char name[NAME_SIZE / sizeof(efi_char)];
    efi_guid vendor;
    u32 shown = 0;
    name[0] = 0;
    for (u32 i = 0; i < MOST_VARIABLES && shown < MOST_SHOWN; i++) {
        usize size = NAME_SIZE;
        if (runtime->get_next_variable_name(&size, name, &vendor) != EFI_SUCCESS) return;
        if (!same_guid(&vendor, &global_guid)) continue;
        put_variable(name);
        shown++;
    }
}

static void put_mark(const char *key, const mark *value) {
    begin_object(key);
    put_number("run", value->run);
    put_bytes("nonce_hex", value->nonce, sizeof value->nonce);
    end_object();
}

/* Different in every run of every machine: the counter, and the time of day. */
static mark new_mark(void) {
    mark value = {run_number, {0}};
    efi_time now = {0};
    u64 ticks = counter();
    runtime->get_time(&now, 0);
    for (u32 i = 0; i < 8; i++) value.nonce[i] = (u8)(ticks >> i * 8);
    u32 time = crc32(run_number, &now, sizeof now);
    u32 mixed = crc32(time, value.nonce, 8);
    for (u32 i = 0; i < 4; i++) value.nonce[8 + i] = (u8)(time >> i * 8), value.nonce[12 + i] = (u8)(mixed >> i * 8);
    return value;
}

static void test_mark(void) {
    mark value, read_back;
    usize size = sizeof value;
    u32 attributes = 0;
    record_begin("variable-test");
    put_utf16("name", mark_name, COUNT(mark_name));
    put_guid("guid", &probe_guid);
    efi_status status = runtime->get_variable(mark_name, &probe_guid, &attributes, &size, &value);
    put_status("read_status", status);
    if (status == EFI_SUCCESS && size == sizeof value)
        put_mark("found", &value);
    else
        put_null("found");

    value = new_mark();
    status = runtime->set_variable(mark_name, &probe_guid, MARK_ATTRIBUTES, sizeof value, &value);
    put_status("write_status", status);
    put_mark("written", &value);
    size = sizeof read_back;
    status = runtime->get_variable(mark_name, &probe_guid, &attributes, &size, &read_back);
    put_bool("read_back_ok",
             status == EFI_SUCCESS && size == sizeof value && same_bytes(&value, &read_back, sizeof value));
    put_number("attributes", status == EFI_SUCCESS ? attributes : 0);
    record_end();
}

static void put_store(void) {
    u64 maximum = 0, remaining = 0, largest = 0;
    efi_status status = EFI_UNSUPPORTED;
    if (firmware->header.revision >= 0x20000 && runtime->query_variable_info)
        status = runtime->query_variable_info(MARK_ATTRIBUTES, &maximum, &remaining, &largest);
    record_begin("variable-store");
    put_status("status", status);
    put_number("maximum", maximum);
    put_number("remaining", remaining);
    put_number("largest", largest);
    put_bool("file_store", media_has_variable_file());
    record_end();
}

/* The store comes last: U-Boot writes its file when a variable is set. */
test_result test_variables(void) {
    list_variables();
    test_mark();
    put_store();
    return DONE;
}
