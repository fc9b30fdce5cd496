/* The order of things: state, tests one after the other, and how the run ends. */
#include "probe.h"

#define WATCHDOG_SECONDS 60
#define WATCHDOG_CODE 0x10000 /* codes below are firmware's (UEFI 2.10, section 7.5) */
#define WIRE_VERSION 1

#ifdef __aarch64__
#define STATE "aarch64"
#else
#define STATE "aarch32"
#endif

efi_system_table *firmware;
efi_boot_services *boot;
efi_runtime_services *runtime;
efi_loaded_image *self;

const efi_guid global_guid = {0x8be4df61, 0x93ca, 0x11d2, {0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c}};
const efi_guid probe_guid = {0x7e5f5f3b, 0x6f0d, 0x4b1e, {0x9a, 0x57, 0x41, 0x52, 0x4d, 0x56, 0x4d, 0x31}};

static const struct {
    const char *id;
    test_result (*run)(void);
} tests[] = {
    {"system", test_system}, {"cpu", test_cpu},         {"tables", test_tables},       {"fdt", test_fdt},
    {"acpi", test_acpi},     {"smbios", test_smbios},   {"memory", test_memory},       {"console", test_console},
    {"block", test_block},   {"network", test_network}, {"pci", test_pci},             {"variables", test_variables},
    {"rtc", test_rtc},       {"counter", test_counter}, {"gic", test_gic},             {"timer", test_timer},
};

static void crash_if_asked(const char *id, crash_kind kind) {
    if (config.crash_kind != kind || !same_text(config.crash, id)) return;
    if (kind != CRASH_HANG) __asm__ volatile("udf #0");
    boot->set_watchdog_timer(0, WATCHDOG_CODE, 0, 0);
    for (;;) __asm__ volatile("");
}

/* In a brief run only what has to be seen again is tried: who the firmware is, and whether it remembers. */
static int is_skipped(const char *id) {
    int again = same_text(id, "system") || same_text(id, "variables");
    return in_list(config.skip, id) || (config.brief && run_number > config.brief && !again);
}

typedef struct {
    u32 index;
    test_result result;
} test_run;

static void run_body(void *argument) {
    test_run *run = argument;
    crash_if_asked(tests[run->index].id, CRASH_FAULT);
    run->result = tests[run->index].run();
}

/* A fault inside a service of firmware may have left its task priority raised. */
static void lower_priority(void) {
    boot->raise_tpl(EFI_TPL_HIGH_LEVEL);
    boot->restore_tpl(EFI_TPL_APPLICATION);
}

static void end_test(const char *id, const char *result, const fault *caught) {
    record_begin("test-end");
    put_text("id", id);
    put_text("result", result);
    if (caught) {
        put_hex("esr", caught->esr);
        put_hex("far", caught->far);
        put_hex("elr", caught->elr);
    }
    record_end();
}

static void run_test(u32 index) {
    const char *id = tests[index].id;
    test_run run = {index, DONE};
    fault caught;
    int skip = is_skipped(id), crashed = in_list(crashed_tests, id);
    if (!skip && !crashed) state_enter(id);
    record_begin("test-begin");
    put_text("id", id);
    record_end();
    if (crashed || skip) {
        end_test(id, crashed ? "crashed" : "skipped", 0);
        return;
    }
    boot->set_watchdog_timer(WATCHDOG_SECONDS, WATCHDOG_CODE, 0, 0);
    crash_if_asked(id, CRASH_HANG);
    crash_if_asked(id, CRASH_ABORT);
    if (catch_fault(run_body, &run, &caught)) {
        lower_priority();
        record_drop();
        end_test(id, "fault", &caught);
    } else {
        end_test(id, run.result == DONE ? "done" : "skipped", 0);
    }
}

static void put_crashed(void) {
    begin_array("crashed");
    for (u32 i = 0; i < COUNT(tests); i++)
        if (in_list(crashed_tests, tests[i].id)) put_text(0, tests[i].id);
    end_array();
}

static void say_begin(void) {
    record_begin("begin");
    put_number("wire", WIRE_VERSION);
    put_text("version", ARMVM_VERSION);
    put_number("run", run_number);
    put_text("state", STATE);
    begin_object("media");
    put_bool("file", media.file);
    put_status("status", media.status);
    end_object();
    put_text("reason", run_reason);
    record_end();
}

static void say_end(const char *next) {
    record_begin("runtime");
    put_bool("reset_supported", runtime->reset_system != 0);
    put_text("next", next);
    record_end();
    record_begin("complete");
    put_number("run", run_number);
    put_number("tests", COUNT(tests));
    put_crashed();
    put_text("next", next);
    record_end();
}

efi_status EfiMain(efi_handle image, efi_system_table *system_table) {
    static const efi_guid loaded_image_guid = EFI_LOADED_IMAGE_GUID;
    firmware = system_table;
    boot = firmware->boot_services;
    runtime = firmware->runtime_services;
    efi_status status = boot->handle_protocol(image, &loaded_image_guid, (void **)&self);
    if (status != EFI_SUCCESS) return status;

    boot->set_watchdog_timer(WATCHDOG_SECONDS, WATCHDOG_CODE, 0, 0);
    media_open();
    state_load();
    media_start_run(run_number);
    say_begin();
    for (u32 i = 0; i < COUNT(tests); i++) run_test(i);
    boot->set_watchdog_timer(0, WATCHDOG_CODE, 0, 0);

    const char *next = state_finish();
    say_end(next);
    media_close();
    if (same_text(next, "reset")) runtime->reset_system(EFI_RESET_COLD, EFI_SUCCESS, 0, 0);
    if (same_text(next, "shutdown")) runtime->reset_system(EFI_RESET_SHUTDOWN, EFI_SUCCESS, 0, 0);
    while (same_text(next, "halt")) boot->stall(1000000);
    return EFI_SUCCESS;
}
