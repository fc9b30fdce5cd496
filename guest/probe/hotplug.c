/* What comes and goes while the machine runs, as the kernel itself announces it (netlink(7), NETLINK_KOBJECT_UEVENT). */
#include "probe.h"

#include <errno.h>
#include <linux/netlink.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BUFFER_BYTES = 4 << 20, MESSAGE_SIZE = 8192, QUIET_MS = 250, SETTLE_MS = 10000, LINK_MS = 5000, KERNEL_GROUP = 1 };

static int events = -1;

struct event {
    char text[MESSAGE_SIZE];
    const char *action, *path, *subsystem, *type;
};

void hotplug_open(void) {
    struct sockaddr_nl address = {.nl_family = AF_NETLINK, .nl_groups = KERNEL_GROUP};
    int size = BUFFER_BYTES;
    events = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT);
    if (events < 0) return;
    setsockopt(events, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
    if (bind(events, (struct sockaddr *)&address, sizeof address) < 0) {
        close(events);
        events = -1;
    }
}

int hotplug_descriptor(void) { return events; }

static const char *after(const char *part, const char *key) {
    size_t length = strlen(key);
    return strncmp(part, key, length) == 0 ? part + length : NULL;
}

/* The next event; false when there is none. */
static bool receive(struct event *event) {
    for (;;) {
        struct sockaddr_nl sender = {0};
        struct iovec place = {event->text, sizeof event->text - 1};
        struct msghdr message = {.msg_name = &sender, .msg_namelen = sizeof sender, .msg_iov = &place, .msg_iovlen = 1};
        ssize_t length = recvmsg(events, &message, 0);
        if (length < 0 && errno == ENOBUFS) {
            say_error("the kernel announced more than could be taken in: hotplug events are lost");
            continue;
        }
        if (length < 0) return false;
        if (sender.nl_pid != 0 || length == 0) continue; /* not the kernel */
        event->text[length] = 0;
        event->action = event->path = event->subsystem = event->type = "";
        for (const char *part = event->text; part < event->text + length; part += strlen(part) + 1) {
            const char *value;
            if ((value = after(part, "ACTION="))) event->action = value;
            else if ((value = after(part, "DEVPATH="))) event->path = value;
            else if ((value = after(part, "SUBSYSTEM="))) event->subsystem = value;
            else if ((value = after(part, "DEVTYPE="))) event->type = value;
        }
        return true;
    }
}

/* What is reported; without a type, every device of the subsystem. */
static const struct kind {
    const char *subsystem, *type;
} kinds[] = {{"block", "disk"}, {"net", NULL}, {"pci", NULL}, {"xen", NULL}, {"scsi", "scsi_device"}};

static bool worth_reporting(const struct event *event) {
    if (strcmp(event->action, "add") != 0 && strcmp(event->action, "remove") != 0) return false;
    if (after(event->path, "/devices/virtual/")) return false;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(event->subsystem, kinds[i].subsystem) == 0)
            return !kinds[i].type || strcmp(event->type, kinds[i].type) == 0;
    return false;
}

static void report(const struct event *event) {
    const char *slash = strrchr(event->path, '/');
    char name[NAME_SIZE], folder[PATH_SIZE];
    snprintf(name, sizeof name, "%s", slash ? slash + 1 : event->path);
    snprintf(folder, sizeof folder, "/sys%s", event->path);
    bool added = strcmp(event->action, "add") == 0;
    record_begin("hotplug");
    put_text("action", event->action);
    put_text("subsystem", event->subsystem);
    if (added && strcmp(event->subsystem, "block") == 0) {
        put_block(name);
    } else if (added && strcmp(event->subsystem, "net") == 0) {
        put_net(name, LINK_MS);
    } else {
        put_text("name", name);
        put_text("devpath", event->path);
        if (added && strcmp(event->subsystem, "pci") == 0) put_pci_ids(folder);
    }
    record_end();
}

void hotplug_report(void) {
    static struct event event;
    while (events >= 0 && receive(&event))
        if (worth_reporting(&event)) report(&event);
}

void hotplug_settle(void) {
    static struct event event;
    long long end = now_ms() + SETTLE_MS;
    struct pollfd readable = {.fd = events, .events = POLLIN};
    while (events >= 0 && now_ms() < end && poll(&readable, 1, QUIET_MS) > 0)
        while (receive(&event)) continue;
}
