/* What lasts from one run to the next (\ARMVM\STATE.TXT, else a variable), and \ARMVM\CONFIG.TXT. */
#include "probe.h"

#define STATE_SIZE 512 /* of the file, padded with line feeds: always one sector, written in place */
#define LONG_UPTIME_MS 60000

probe_config config;
u32 run_number;
const char *run_reason;
char crashed_tests[256];

static const efi_char state_name[] = u"ArmvmProbeState";
static char text[STATE_SIZE + 1]; /* the state */
static u32 complete_runs;
static efi_status kept; /* whether it could be put anywhere */

static int is_break(char character) { return !character || character == '\n' || character == '\r'; }

/* The value of the first line "key=value"; 0 when there is none. It ends at a line break. */
static const char *find_value(const char *lines, const char *key) {
    while (*lines) {
        const char *at = lines, *name = key;
        while (*name && *at == *name) at++, name++;
        if (!*name && *at == '=') return at + 1;
        while (*lines && *lines != '\n') lines++;
        if (*lines) lines++;
    }
    return 0;
}

static void copy_value(const char *lines, const char *key, char *value, usize size) {
    const char *from = find_value(lines, key);
    usize at = 0;
    while (from && !is_break(from[at]) && at < size - 1) value[at] = from[at], at++;
    value[at] = 0;
}

static u32 number_value(const char *lines, const char *key, u32 otherwise) {
    const char *at = find_value(lines, key);
    u32 value = 0;
    if (!at || *at < '0' || *at > '9') return otherwise;
    while (*at >= '0' && *at <= '9' && value < 10000) value = value * 10 + (u32)(*at++ - '0');
    return value;
}

static void load_config(void) {
    static char lines[4096];
    char end[16];
    char *kind = config.crash;
    if (!media_load(u"CONFIG.TXT", lines, sizeof lines)) *lines = 0;
    config.runs = number_value(lines, "runs", 2);
    if (!config.runs) config.runs = 1;
    config.brief = number_value(lines, "brief", 0);
    copy_value(lines, "end", end, sizeof end);
    config.end = same_text(end, "reset")    ? END_RESET
                 : same_text(end, "return") ? END_RETURN
                 : same_text(end, "halt")   ? END_HALT
                                            : END_SHUTDOWN;
    copy_value(lines, "skip", config.skip, sizeof config.skip);
    copy_value(lines, "crash", config.crash, sizeof config.crash);
    while (*kind && *kind != ':') kind++;
    if (*kind) *kind++ = 0;
    config.crash_kind = same_text(kind, "fault") ? CRASH_FAULT : same_text(kind, "abort") ? CRASH_ABORT : CRASH_HANG;
}

static usize append(usize at, const char *word) {
    while (*word && at < STATE_SIZE) text[at++] = *word++;
    return at;
}

static usize append_number(usize at, const char *key, u32 value) {
    char digits[11];
    u32 first = sizeof digits - 1;
    digits[first] = 0;
    do digits[--first] = (char)('0' + value % 10);
    while (value /= 10);
    return append(append(at, key), digits + first);
}

static void keep(const char *test, const char *next) {
    usize end = append_number(0, "run=", run_number);
    end = append(append(end, "\ntest="), test);
    end = append(append(end, "\ncrashed="), crashed_tests);
    end = append_number(end, "\ncomplete=", complete_runs);
    end = append(append(append(end, "\nnext="), next), "\n");
    for (usize i = end; i < STATE_SIZE; i++) text[i] = '\n';
    if (media.file) {
        kept = media.status = media_store(u"STATE.TXT", text, STATE_SIZE);
        media.file = kept == EFI_SUCCESS;
    }
    if (!media.file)
        kept = runtime->set_variable(state_name, &probe_guid, EFI_VARIABLE_NON_VOLATILE | EFI_VARIABLE_BOOT_SERVICE,
                                     end, text);
}

static void load_variable(void) {
    usize length = STATE_SIZE;
    u32 attributes;
    if (runtime->get_variable(state_name, &probe_guid, &attributes, &length, text) != EFI_SUCCESS) length = 0;
    text[length] = 0;
}

static void add_crashed(const char *test) {
    usize at = 0;
    if (in_list(crashed_tests, test)) return;
    while (crashed_tests[at]) at++;
    if (at && at < sizeof crashed_tests - 1) crashed_tests[at++] = ',';
    while (*test && at < sizeof crashed_tests - 1) crashed_tests[at++] = *test++;
    crashed_tests[at] = 0;
}

/* Takes in what the last run left and counts this one. */
static void adopt(void) {
    char test[32], next[16];
    copy_value(text, "test", test, sizeof test);
    copy_value(text, "next", next, sizeof next);
    copy_value(text, "crashed", crashed_tests, sizeof crashed_tests);
    complete_runs = number_value(text, "complete", 0);
    run_number = number_value(text, "run", 0) + 1;
    run_reason = run_number == 1 ? "first" : *test ? "crash" : same_text(next, "reset") ? "reset" : "again";
    if (*test) add_crashed(test);
}

void state_load(void) {
    load_config();
    if (media.file) {
        if (!media_load(u"STATE.TXT", text, sizeof text)) *text = 0;
        adopt();
        keep("", "");
    }
    if (!media.file) { /* also when that just failed: what stands in such a file may be old */
        load_variable();
        adopt();
        keep("", "");
    }
}

void state_enter(const char *test) { keep(test, ""); }

/*
 * Whether the next run may know nothing of this one: then every run would be the first, and the machine be reset for
 * ever. U-Boot's variables are in a file on the ESP, which cannot be written where they are needed. Of other firmware
 * it cannot be told, but a machine that has been up for long in its first run was reset before.
 */
static int is_forgetful(void) {
    static const efi_char u_boot[] = u"Das U-Boot";
    if (media.file) return 0;
    if (kept != EFI_SUCCESS || !firmware->firmware_vendor) return 1;
    if (same_bytes(firmware->firmware_vendor, u_boot, sizeof u_boot)) return 1;
    return run_number == 1 && milliseconds_of(counter()) > LONG_UPTIME_MS;
}

const char *state_finish(void) {
    static const char *const names[] = {"shutdown", "reset", "return", "halt"};
    const char *next = names[config.end];
    if (++complete_runs % config.runs && !is_forgetful()) next = "reset";
    keep("", next);
    return next;
}
