/* /init: the first process mounts, and watches over the one that reports; it never ends, since that would be a panic. */
#include "probe.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/klog.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

enum { DEFAULT_WAIT_S = 600, MOST_WAIT_S = 86400, CONSOLE_LEVEL = 8 /* syslog(2) */, POWER_OFF = 0, WAIT = 1 };

static void mount_all(void) {
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NOEXEC | MS_NODEV, NULL);
    mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NOEXEC | MS_NODEV, NULL);
    mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID | MS_NOEXEC, NULL);
}

static void report_begin(void) {
    struct utsname system = {0};
    char text[4096];
    uname(&system);
    record_begin("begin");
    put_number("wire", 1);
    put_text("version", read_text(text, sizeof text, "/version") ? text : NULL);
    put_number("run", 1);
    put_text("state", STATE);
    put_text("kernel", system.release);
    put_text("machine", system.machine);
    put_text("cmdline", read_text(text, sizeof text, "/proc/cmdline") ? text : NULL);
    record_end();
}

/* Until the host says that it is over, or has said nothing for wait_ms. */
static void serve(long long wait_ms) {
    char line[TEXT_SIZE];
    long long deadline = now_ms() + wait_ms;
    for (long long left; (left = deadline - now_ms()) > 0;) {
        struct pollfd sources[] = {{.fd = console_descriptor(), .events = POLLIN},
                                   {.fd = hotplug_descriptor(), .events = POLLIN}};
        poll(sources, 2, left < 1000 ? (int)left : 1000);
        hotplug_report();
        while (console_line(line, sizeof line)) {
            deadline = now_ms() + wait_ms;
            if (strstr(line, "armvm:end")) {
                hotplug_report();
                return;
            }
            if (strstr(line, "armvm:report")) report_devices();
        }
    }
}

static int probe(void) {
    char word[TEXT_SIZE];
    bool stay = command_line_word("armvm.end", word, sizeof word) && strcmp(word, "wait") == 0;
    long long wait_s = command_line_word("armvm.wait", word, sizeof word) ? atoll(word) : DEFAULT_WAIT_S;
    if (wait_s < 0 || wait_s > MOST_WAIT_S) wait_s = DEFAULT_WAIT_S;

    hotplug_open();
    load_modules();
    console_open(); /* a driver that was just loaded may have brought it */
    report_begin();
    report_modules();
    hotplug_settle();
    report_devices();
    bring_cpus_online();
    interrupts_first_look();
    report_system();
    report_interrupts();
    record_begin("ready");
    record_end();
    serve(wait_s * 1000);
    record_begin("complete");
    put_text("next", stay ? "wait" : "poweroff");
    record_end();
    return stay ? WAIT : POWER_OFF;
}

/* Waits for the reporting process, and for every orphan until then. */
static int watch(pid_t child) {
    int status = 0;
    for (pid_t ended; (ended = waitpid(-1, &status, 0)) != child;)
        if (ended < 0) return POWER_OFF;
    if (WIFEXITED(status)) return WEXITSTATUS(status);
    wire_mend();
    say_error("the probe was ended by signal %d", WTERMSIG(status));
    return POWER_OFF;
}

int main(void) {
    mount_all();
    klogctl(CONSOLE_LEVEL, NULL, 1); /* the kernel's own messages would break lines */
    wire_start();
    console_open();
    console_remark("\r\narmvm: the Linux probe (" STATE ")");
    pid_t child = fork();
    if (child == 0) _exit(probe());
    if (child < 0) say_error("no process can be started");
    int next = child < 0 ? POWER_OFF : watch(child);
    console_open();
    console_flush();
    if (next == POWER_OFF) reboot(RB_POWER_OFF);
    for (;;) pause(); /* told to stay, or the machine cannot be powered off */
}
