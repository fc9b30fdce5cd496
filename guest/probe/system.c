/* The machine as the kernel found it: boot, CPUs, memory, interrupts, clocks, consoles. */
#include "probe.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/klog.h>
#include <time.h>
#include <unistd.h>

enum {
    ONLINE_TIMEOUT_MS = 20000,
    FDT_PART_BYTES = 1536,
    MOST_FDT_BYTES = 1 << 20,
    MOST_LOG_BYTES = 256 << 10,
    MOST_LOG_LINES = 48,
    LOG_LINE_SIZE = 160,
    MOST_CPUS = 512,
    MOST_ACPI_TABLES = 128,
    MOST_RANGES = 256,
    RTC_TIMEOUT_MS = 5000,
    READ_ALL = 3, /* syslog(2) */
};

static char kernel_log[MOST_LOG_BYTES + 1];

static const char *const telling[] = {
    "psci:",   "GIC",        "ITS",          "arch_timer",   "clocksource: Switched", "efi: EFI",   "Machine model",
    "DMI:",    "Hypervisor", "Xen ",         "SMP: Total",   "smp: Brought",          "32-bit EL",  "CPU: All CPU(s)",
    "ACPI: I", "rtc-",       "console [",    "pciehp",       "root bus",
};

/* The text of a line of the kernel's log, without its level and time. */
static char *log_text(char *line) {
    if (*line == '<') line = strchr(line, '>') ? strchr(line, '>') + 1 : line;
    if (*line == '[') line = strstr(line, "] ") ? strstr(line, "] ") + 2 : line;
    return line;
}

static bool is_telling(const char *line) {
    for (size_t i = 0; i < sizeof telling / sizeof *telling; i++)
        if (strstr(line, telling[i])) return true;
    return false;
}

static void put_log(const char *name) {
    int lines = 0;
    char *rest;
    list_begin(name);
    for (char *line = strtok_r(kernel_log, "\n", &rest); line && lines < MOST_LOG_LINES;
         line = strtok_r(NULL, "\n", &rest)) {
        char *text = log_text(line);
        if (!is_telling(text)) continue;
        if (strlen(text) >= LOG_LINE_SIZE) text[LOG_LINE_SIZE - 1] = 0;
        put_text(NULL, text);
        lines++;
    }
    list_end();
}

static void report_fdt(void) {
    static uint8_t fdt[MOST_FDT_BYTES];
    ssize_t size = read_bytes("/sys/firmware/fdt", fdt, sizeof fdt);
    if (size <= 0) return;
    long parts = (size + FDT_PART_BYTES - 1) / FDT_PART_BYTES;
    for (long part = 0; part < parts; part++) {
        long start = part * FDT_PART_BYTES, left = size - start;
        record_begin("fdt-data");
        put_number("part", part);
        put_number("parts", parts);
        put_base64("data_b64", fdt + start, (size_t)(left < FDT_PART_BYTES ? left : FDT_PART_BYTES));
        record_end();
    }
}

static void report_boot(void) {
    bool fdt = exists("/proc/device-tree/compatible") || exists("/proc/device-tree/model");
    record_begin("boot");
    put_flag("efi", exists("/sys/firmware/efi"));
    put_flag("fdt", fdt);
    const struct names *tables = list_folder("/sys/firmware/acpi/tables");
    list_begin("acpi");
    for (size_t i = 0; i < tables->count && i < MOST_ACPI_TABLES; i++)
        if (strcmp(tables->name[i], "data") != 0 && strcmp(tables->name[i], "dynamic") != 0)
            put_text(NULL, tables->name[i]);
    list_end();
    put_log("dmesg");
    record_end();
    /* Booted by ACPI, the kernel has a tree of its own making with nothing but its command line. */
    if (fdt) report_fdt();
}

static void psci_version(char *version, size_t size) {
    char *line = strstr(kernel_log, "psci: PSCIv");
    snprintf(version, size, "%s", line ? line : "");
    version[strcspn(version, "\n")] = 0;
}

static void bring_online(const void *question, void *answer) {
    char path[PATH_SIZE];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/%s/online", (const char *)question);
    int file = open(path, O_WRONLY | O_CLOEXEC);
    int *error = answer;
    *error = file < 0 || write(file, "1", 1) != 1 ? errno : 0;
}

/*
 * With maxcpus=1 on its command line the kernel leaves the others to us. Where a 32-bit kernel patches its own code, for
 * every driver and interface, it stops all CPUs: emulated ones are brought up after that, or it takes minutes.
 */
void bring_cpus_online(void) {
    const struct names *cpus = list_folder("/sys/devices/system/cpu");
    for (size_t i = 0; i < cpus->count; i++) {
        const char *name = cpus->name[i];
        int error = 0;
        if (strncmp(name, "cpu", 3) != 0 || !isdigit((unsigned char)name[3])) continue;
        if (read_number("/sys/devices/system/cpu/%s/online", name) != 0) continue;
        if (!attempt(bring_online, name, &error, sizeof error, ONLINE_TIMEOUT_MS)) say_error("%s does not come up", name);
        else if (error) say_error("%s does not come up: %s", name, strerror(error));
    }
}

static void report_cpus(const char *psci) {
    char text[TEXT_SIZE];
    record_begin("cpus");
    static const char *const lists[] = {"present", "online", "possible"};
    for (size_t i = 0; i < 3; i++)
        put_text(lists[i], read_text(text, sizeof text, "/sys/devices/system/cpu/%s", lists[i]) ? text : NULL);
    put_text("psci", *psci ? psci : NULL);
    object_begin("enable");
    const struct names *cpus = list_folder("/sys/devices/system/cpu");
    for (size_t i = 0; i < cpus->count; i++) {
        const char *name = cpus->name[i];
        if (strncmp(name, "cpu", 3) != 0 || !isdigit((unsigned char)name[3])) continue;
        if (read_text(text, sizeof text, "/sys/devices/system/cpu/%s/of_node/enable-method", name)) put_text(name, text);
    }
    object_end();
    record_end();
}

static void report_memory(void) {
    static char text[64 << 10];
    char *rest;
    read_text(text, sizeof text, "/proc/meminfo");
    char *total = strstr(text, "MemTotal:");
    record_begin("memory-total");
    if (total) put_number("kib", strtoll(total + strlen("MemTotal:"), NULL, 10));
    else put_null("kib");
    list_begin("ranges");
    read_text(text, sizeof text, "/proc/iomem");
    int count = 0;
    for (char *line = strtok_r(text, "\n", &rest); line && count < MOST_RANGES; line = strtok_r(NULL, "\n", &rest)) {
        char *dash, *end;
        unsigned long long first = strtoull(line, &dash, 16);
        if (line[0] == ' ' || *dash != '-' || !strstr(line, " : System RAM")) continue;
        unsigned long long last = strtoull(dash + 1, &end, 16);
        list_begin(NULL);
        put_address(NULL, first);
        put_address(NULL, last);
        list_end();
        count++;
    }
    list_end();
    record_end();
}

/* ---- interrupts ---- */

struct timer_look {
    size_t cpus;
    unsigned long long counts[MOST_CPUS];
};

static char interrupts[256 << 10];
static struct timer_look first_look;
static long long first_look_ms;

/* The CPUs in the heading of /proc/interrupts. */
static size_t heading(const char *line) {
    size_t cpus = 0;
    for (const char *c = line; (c = strstr(c, "CPU")) && cpus < MOST_CPUS; c += 3) cpus++;
    return cpus;
}

/* Past the label and the counts of a line: what controls the interrupt, and who takes it. NULL for lines without a
   number (the kernel's own interrupts between CPUs). */
static char *past_counts(char *line, size_t cpus, unsigned long long *counts) {
    char *position = line;
    strtoul(line, &position, 10);
    if (position == line || *position != ':') return NULL;
    position++;
    for (size_t i = 0; i < cpus; i++) counts[i] = strtoull(position, &position, 10);
    return position + strspn(position, " ");
}

static char *first_line(char **rest) {
    read_text(interrupts, sizeof interrupts, "/proc/interrupts");
    return strtok_r(interrupts, "\n", rest);
}

static struct timer_look look(void) {
    struct timer_look result = {0};
    static unsigned long long counts[MOST_CPUS];
    char *rest, *line = first_line(&rest);
    result.cpus = line ? heading(line) : 0;
    while (line && (line = strtok_r(NULL, "\n", &rest))) {
        char *about = past_counts(line, result.cpus, counts);
        if (!about || !strstr(about, "arch_timer")) continue;
        for (size_t i = 0; i < result.cpus; i++) result.counts[i] += counts[i];
    }
    return result;
}

void interrupts_first_look(void) {
    first_look = look();
    first_look_ms = now_ms();
}

static void put_look(const char *name, const struct timer_look *timer) {
    list_begin(name);
    for (size_t i = 0; i < timer->cpus; i++) put_number(NULL, (long long)timer->counts[i]);
    list_end();
}

static void put_controllers(void) {
    enum { MOST_CONTROLLERS = 32 };
    static struct {
        char name[NAME_SIZE];
        int interrupts;
    } found[MOST_CONTROLLERS];
    static unsigned long long counts[MOST_CPUS];
    static char lines[8][TEXT_SIZE];
    size_t controllers = 0, timers = 0, cpus;
    char *rest, *line = first_line(&rest);
    cpus = line ? heading(line) : 0;
    while (line && (line = strtok_r(NULL, "\n", &rest))) {
        char *about = past_counts(line, cpus, counts);
        if (!about) continue;
        if (strstr(about, "arch_timer") && timers < 8) snprintf(lines[timers++], TEXT_SIZE, "%s", about);
        size_t length = strcspn(about, " "), i = 0;
        if (length >= NAME_SIZE) length = NAME_SIZE - 1;
        while (i < controllers && (strncmp(found[i].name, about, length) != 0 || found[i].name[length])) i++;
        if (i == MOST_CONTROLLERS) continue;
        if (i == controllers) memcpy(found[controllers++].name, about, length);
        found[i].interrupts++;
    }
    object_begin("controllers");
    for (size_t i = 0; i < controllers; i++) put_number(found[i].name, found[i].interrupts);
    object_end();
    list_begin("timer_lines");
    for (size_t i = 0; i < timers; i++) put_text(NULL, lines[i]);
    list_end();
}

void report_interrupts(void) {
    sleep_ms((long)(first_look_ms + 1000 - now_ms()));
    long long elapsed = now_ms() - first_look_ms;
    struct timer_look later = look();
    record_begin("interrupts");
    put_controllers();
    put_look("timer", &first_look);
    put_look("timer_later", &later);
    put_number("elapsed_ms", elapsed);
    record_end();
}

/* ---- clocks and consoles ---- */

static void read_rtc(const void *question, void *answer) {
    long long *seconds = answer;
    *seconds = read_number("/sys/class/rtc/%s/since_epoch", (const char *)question);
}

static void report_clock(void) {
    static const char folder[] = "/sys/devices/system/clocksource/clocksource0";
    char text[TEXT_SIZE];
    record_begin("clock");
    put_text("clocksource", read_text(text, sizeof text, "%s/current_clocksource", folder) ? text : NULL);
    put_text("available", read_text(text, sizeof text, "%s/available_clocksource", folder) ? text : NULL);
    list_begin("rtc");
    const struct names *clocks = list_folder("/sys/class/rtc");
    for (size_t i = 0; i < clocks->count && i < 8; i++) {
        const char *name = clocks->name[i];
        long long seconds = -1;
        object_begin(NULL);
        put_text("name", read_text(text, sizeof text, "/sys/class/rtc/%s/name", name) ? text : name);
        put_text("driver", read_link_name(text, sizeof text, "/sys/class/rtc/%s/device/driver", name) ? text : NULL);
        if (attempt(read_rtc, name, &seconds, sizeof seconds, RTC_TIMEOUT_MS) && seconds >= 0) put_number("time", seconds);
        else put_null("time");
        object_end();
    }
    list_end();
    put_number("wall", time(NULL));
    record_end();
}

static void report_consoles(void) {
    char text[4096], *rest;
    record_begin("consoles");
    list_begin("lines");
    read_text(text, sizeof text, "/proc/consoles");
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) put_text(NULL, line);
    list_end();
    put_text("active", read_text(text, sizeof text, "/sys/class/tty/console/active") ? text : NULL);
    list_begin("tty");
    const struct names *lines = list_folder("/sys/class/tty");
    for (size_t i = 0, shown = 0; i < lines->count && shown < 64; i++) {
        if (strncmp(lines->name[i], "hvc", 3) != 0 && !exists("/sys/class/tty/%s/device", lines->name[i])) continue;
        put_text(NULL, lines->name[i]);
        shown++;
    }
    list_end();
    put_text("stdout_path", read_text(text, sizeof text, "/proc/device-tree/chosen/stdout-path") ? text : NULL);
    record_end();
}

void report_system(void) {
    char psci[NAME_SIZE];
    int length = klogctl(READ_ALL, kernel_log, MOST_LOG_BYTES);
    kernel_log[length > 0 ? length : 0] = 0;
    psci_version(psci, sizeof psci);
    report_boot(); /* takes the log apart */
    report_cpus(psci);
    report_memory();
    report_clock();
    report_consoles();
}
