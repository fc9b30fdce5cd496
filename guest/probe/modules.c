/* The drivers that the kernel has as modules, in the order of /modules/load.list. */
#include "probe.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MOST_MODULES = 128, LOAD_TIMEOUT_MS = 30000 };

static struct module {
    char name[NAME_SIZE];
    int error; /* errno, or -1 when loading did not come to an end */
} modules[MOST_MODULES];
static size_t count;

static void load(const void *question, void *answer) {
    char path[PATH_SIZE];
    snprintf(path, sizeof path, "/modules/%s.ko", (const char *)question);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    int *error = answer;
    *error = file < 0 || syscall(SYS_finit_module, file, "", 0) != 0 ? errno : 0;
}

void load_modules(void) {
    static char list[MOST_MODULES * NAME_SIZE];
    char *rest;
    read_text(list, sizeof list, "/modules/load.list");
    for (char *name = strtok_r(list, "\n", &rest); name && count < MOST_MODULES; name = strtok_r(NULL, "\n", &rest)) {
        struct module *module = &modules[count++];
        snprintf(module->name, sizeof module->name, "%s", name);
        if (!attempt(load, module->name, &module->error, sizeof module->error, LOAD_TIMEOUT_MS)) module->error = -1;
        if (module->error == EEXIST) module->error = 0;
    }
}

void report_modules(void) {
    for (const struct module *module = modules; module < modules + count; module++) {
        record_begin("module");
        put_text("name", module->name);
        put_flag("loaded", module->error == 0);
        if (module->error == ENOENT && !exists("/modules/%s.ko", module->name))
            put_text("error", "the kernel does not have it");
        else if (module->error == -1)
            put_text("error", "loading it did not come to an end");
        else
            put_text("error", module->error ? strerror(module->error) : NULL);
        record_end();
    }
}
