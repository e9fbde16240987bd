/* spank_container: pyxis' options for srun, --container-image and others, by udi-run.
 *
 * A task of a step with --container-image runs udi-task in place of its command, which runs that
 * command by udi-run. The plugin changes the first word of the task's argv, just before slurmstepd
 * executes it and after it has become the user; so what slurmstepd does last (TaskProlog, limits)
 * is as ever. Slurm documents no way to change a task's argv: spank_get_item gives the step's own
 * array, of which a word can be replaced but which can't grow. So the command itself, and udi-run's
 * options, are said by variables, which udi-task takes away.
 *
 * plugstack.conf: required spank_container.so task=/usr/local/lib/slurm/udi-task [path=DIR]
 * DIR is where udi-run is, before the PATH of the user's. What is wrong with that line ends the steps
 * that ask for a container, and none of the others.
 */
#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <slurm/slurm.h>
#include <slurm/spank.h>

SPANK_PLUGIN(udi_container, 1)

enum { IMAGE, MOUNTS, WORKDIR, NAME, ENV, WITH_VALUE,
       WRITABLE = WITH_VALUE, READONLY, HOME, NO_HOME, ENTRYPOINT, NO_ENTRYPOINT, NO_REMAP,
       REMAP, SAVE, LOG, UNSHARE, COUNT };

static char *values[COUNT];
static const char *task, *path;
/* Why no container can be had, "" where one can. */
static char broken[256];
/* Why an option is refused, "" where none is. srun ends by its callback's status; slurmstepd only by a
 * task's hook, of which alone the user sees the line. */
static char refused[512];
/* --container-image is another plugin's, and so are pyxis' variables. */
static int elsewhere;

/* As spank_udi.c has it: far from the limits of what carries it. */
#define LONGEST 4096
/* What a hook returns so that nothing runs: of the positive ESPANK_ERROR, Slurm only writes a line. */
#define FAILED -1
#define ROOM (16 * LONGEST)

static int taken(int which, const char *text, int remote);

static struct spank_option options[] = {
    {"container-image", "[USER@][REGISTRY#]IMAGE", "run the tasks in this image, by udi-run", 1, IMAGE, taken},
    {"container-mounts", "SRC:DST[:FLAGS][,...]", "bind SRC of the host to DST inside", 1, MOUNTS, taken},
    {"container-workdir", "DIR", "start in DIR", 1, WORKDIR, taken},
    {"container-name", "NAME", "share the container by this name", 1, NAME, taken},
    {"container-env", "NAME[,...]", "variables of the job that win over the image's", 1, ENV, taken},
    {"container-writable", NULL, "a writable root, gone at the end", 0, WRITABLE, taken},
    {"container-readonly", NULL, "a root that can't be written (the default)", 0, READONLY, taken},
    {"container-mount-home", NULL, "your home directory inside", 0, HOME, taken},
    {"no-container-mount-home", NULL, "not your home directory (the default)", 0, NO_HOME, taken},
    {"container-entrypoint", NULL, "run the image's ENTRYPOINT before the command", 0, ENTRYPOINT, taken},
    {"no-container-entrypoint", NULL, "not the ENTRYPOINT (the default)", 0, NO_ENTRYPOINT, taken},
    {"no-container-remap-root", NULL, "you are you inside (always so)", 0, NO_REMAP, taken},
    {"container-remap-root", NULL, "refused: nobody is root inside", 0, REMAP, taken},
    {"container-save", "PATH", "refused: an image is not changed by what runs in it", 1, SAVE, taken},
    {"container-entrypoint-log", NULL, "refused: its output is the task's", 0, LOG, taken},
    {"container-unshare", "NS[,...]", "refused: network, IPC and host name are the host's", 1, UNSHARE, taken},
    SPANK_OPTIONS_TABLE_END,
};

static int bad(const char *text, const char *more)
{
    snprintf(refused, sizeof refused, "--%s%s", text, more);
    slurm_error("udi: %s", refused);
    return ESPANK_BAD_ARG;
}

static void broke(const char *format, ...)
{
    va_list rest;

    if (*broken)
        return;
    va_start(rest, format);
    vsnprintf(broken, sizeof broken, format, rest);
    va_end(rest);
}

static int taken(int which, const char *text, int remote)
{
    (void)remote;
    if (*broken) {
        slurm_error("udi: %s", broken);
        memcpy(refused, broken, sizeof broken);
        return ESPANK_BAD_ARG;
    }
    if (spank_context() == S_CTX_ALLOCATOR)
        return bad(options[which].name, " is for srun; for a whole job: --image, and srun udi-run");
    if (which == REMAP)
        return bad("container-remap-root", ": nobody is root in a container of udi-run's");
    if (which == SAVE)
        return bad("container-save", ": what runs in an image does not change it; udi pull, udi export");
    if (which == LOG)
        return bad("container-entrypoint-log", ": an ENTRYPOINT's output is the task's own");
    if (which == UNSHARE)
        return bad("container-unshare", ": network, IPC and host name are the host's, as MPI needs them");
    if (which < WITH_VALUE && (!text || !*text || strlen(text) >= LONGEST || strpbrk(text, "\n\r")))
        return bad(options[which].name, " needs one line of 1 to 4095 characters");
    if (which == NAME && strchr(text, ':'))
        return bad("container-name", "=NAME:FLAG: no flag is known here; the name shares a living container");
    char *copy = strdup(which < WITH_VALUE ? text : "");
    if (!copy)
        return ESPANK_ERROR;
    free(values[which]);
    values[which] = copy;
    return ESPANK_SUCCESS;
}

int slurm_spank_init(spank_t spank, int argc, char **argv)
{
    for (int i = 0; i < argc; i++) {
        if (!strncmp(argv[i], "task=/", 6))
            task = argv[i] + 5;
        else if (!strncmp(argv[i], "path=/", 6))
            path = argv[i] + 5;
        else
            broke("plugstack.conf: %s: task=/FILE or path=/DIR", argv[i]);
    }
    if (!task)
        broke("plugstack.conf: spank_container.so needs task=/FILE, the path of udi-task");
    for (int i = 0; options[i].name; i++)
        if (spank_option_register(spank, &options[i]) != ESPANK_SUCCESS) {
            broke("option --%s cannot be registered (pyxis'?)", options[i].name);
            elsewhere |= options[i].val == IMAGE;
        }
    return ESPANK_SUCCESS;
}

/* The variable that pyxis reads where its option is not given: PYXIS_CONTAINER_IMAGE, ... */
static const char *variable(spank_t spank, int which)
{
    static char name[64], text[LONGEST + 1];
    char *to = name + snprintf(name, sizeof name, "PYXIS_");

    for (const char *from = options[which].name; *from; from++)
        *to++ = *from == '-' ? '_' : toupper((unsigned char)*from);
    *to = 0;
    if (spank_context() != S_CTX_REMOTE)
        return getenv(name);
    spank_err_t got = spank_getenv(spank, name, text, sizeof text);
    if (got == ESPANK_ENV_NOEXIST)
        return NULL;
    if (got != ESPANK_SUCCESS) {
        /* Too long, which `taken` says. */
        memset(text, 'x', LONGEST);
        text[LONGEST] = 0;
    }
    return text;
}

static int one_of(const char *text, const char *words)
{
    char word[16];

    return !strchr(text, ' ') && snprintf(word, sizeof word, " %s ", text) < (int)sizeof word &&
           strstr(words, word) != NULL;
}

/* A switch's variable is yes or no. */
static void switched(int yes, int no, const char *text)
{
    if (values[yes] || (no >= 0 && values[no]))
        return;
    if (one_of(text, " 1 true yes y "))
        taken(yes, NULL, 0);
    else if (!one_of(text, " 0 false no n "))
        bad(options[yes].name, " by its variable: yes or no");
    else if (no >= 0)
        taken(no, NULL, 0);
}

static void variables_of_pyxis(spank_t spank)
{
    static const int opposite[COUNT] = {[WRITABLE] = READONLY, [READONLY] = WRITABLE, [HOME] = NO_HOME,
                                        [ENTRYPOINT] = NO_ENTRYPOINT, [REMAP] = NO_REMAP, [LOG] = -1};

    for (int i = 0; i < COUNT; i++) {
        const char *text = strncmp(options[i].name, "no-", 3) ? variable(spank, i) : NULL;
        if (!text)
            continue;
        if (!options[i].has_arg)
            switched(i, opposite[i], text);
        else if (!values[i])
            taken(i, text, 0);
    }
}

/* In srun before it asks for anything, in slurmstepd before its tasks. There nothing fails yet: a node
 * on which a whole step or script can't be launched may be drained. */
int slurm_spank_init_post_opt(spank_t spank, int unused, char **none)
{
    uint32_t step = 0;
    int remote = spank_context() == S_CTX_REMOTE;

    (void)unused, (void)none;
    if (elsewhere || (!remote && spank_context() != S_CTX_LOCAL))
        return ESPANK_SUCCESS;
    if (remote && spank_get_item(spank, S_JOB_STEPID, &step) != ESPANK_SUCCESS)
        return FAILED;
    if (remote && step == SLURM_BATCH_SCRIPT) {
        if (variable(spank, IMAGE))
            bad("container-image", " by PYXIS_CONTAINER_IMAGE is for srun: set it in the script");
        return ESPANK_SUCCESS;
    }
    variables_of_pyxis(spank);
    return *refused && !remote ? FAILED : ESPANK_SUCCESS;
}

/* A text that grows, for a shell; `full` where it did not fit. */
struct text {
    char data[ROOM];
    size_t used;
    int full;
};

static void raw(struct text *out, char c)
{
    if (out->used + 1 < sizeof out->data) {
        out->data[out->used++] = c;
        out->data[out->used] = 0;
    } else
        out->full = 1;
}

static void quoted(struct text *out, const char *text)
{
    for (; *text; text++)
        if (*text == '\'')
            for (const char *c = "'\\''"; *c; c++)
                raw(out, *c);
        else
            raw(out, *text);
}

/* One option of udi-run's as a word: name and value in single quotes. */
static void option(struct text *out, const char *name, const char *value)
{
    raw(out, ' ');
    raw(out, '\'');
    quoted(out, name);
    quoted(out, value);
    raw(out, '\'');
}

/* udi-run knows the option; but that flags are apart by "+" is of pyxis under srun alone. */
static void mounts(struct text *out, char *text)
{
    int colons = 0;

    for (char *c = text; *c; c++) {
        if (*c == ',')
            colons = 0;
        colons += *c == ':';
        if (*c == '+' && colons >= 2)
            *c = ',';
    }
    option(out, "--container-mounts=", text);
}

/* [docker://][USER@][REGISTRY#]IMAGE, or a path. USER is for a download, which no task does. */
static void image(struct text *out, char *text)
{
    char *from = text, *hash = strchr(text, '#');

    if (hash && *text != '/' && *text != '.') {
        *hash = '/';
        if (!strncmp(from, "docker://", 9))
            from += 9;
        for (char *c = from; c < hash; c++)
            if (*c == '@')
                from = c + 1;
    }
    option(out, "--image=", from);
}

static void variables(spank_t spank, struct text *out, char *names)
{
    static char pair[ROOM];

    for (char *rest = names, *name; (name = strtok_r(rest, ",", &rest));) {
        size_t length = strlen(name);
        memcpy(pair, name, length);
        pair[length] = '=';
        if (spank_getenv(spank, name, pair + length + 1, (int)(sizeof pair - length - 1)) == ESPANK_SUCCESS)
            option(out, "--env=", pair);
    }
}

static int set(spank_t spank, const char *name, const char *value)
{
    if (spank_setenv(spank, name, value, 1) == ESPANK_SUCCESS)
        return ESPANK_SUCCESS;
    slurm_error("udi: %s cannot be set for the task", name);
    return FAILED;
}

/* A step of several programs has an argv for each, which no plugin sees: the step's own is then the
 * file of the programs, and its text. */
static int several(int argc, char **argv)
{
    size_t length = argc == 2 ? strlen(argv[1]) : 0;
    const char *at = argc == 2 ? argv[1] + strspn(argv[1], " \t\n") : "";

    return length && argv[1][length - 1] == '\n' && strchr("0123456789*#", *at) != NULL;
}

/* In the task, which is the user's already. */
int slurm_spank_task_init(spank_t spank, int unused, char **none)
{
    static struct text out;
    static char search[ROOM], found[ROOM];
    int argc = 0;
    char **argv = NULL;

    (void)unused, (void)none;
    if (*refused) {
        slurm_error("udi: %s", refused);
        return FAILED;
    }
    for (int i = 0; i < COUNT && !values[IMAGE]; i++)
        if (values[i])
            return bad(options[i].name, " needs --container-image"), FAILED;
    if (!values[IMAGE])
        return ESPANK_SUCCESS;
    if (spank_get_item(spank, S_JOB_ARGV, &argc, &argv) != ESPANK_SUCCESS || argc < 1 || !argv[0])
        return FAILED;
    if (several(argc, argv))
        return bad("container-image", " with --multi-prog: its programs would run outside; name udi-run "
                                      "in the file"), FAILED;
    image(&out, values[IMAGE]);
    if (values[MOUNTS])
        mounts(&out, values[MOUNTS]);
    if (values[WORKDIR])
        option(&out, "--workdir=", values[WORKDIR]);
    if (values[NAME])
        option(&out, "--share=", values[NAME]);
    if (values[ENV])
        variables(spank, &out, values[ENV]);
    if (values[WRITABLE] && !values[READONLY])
        option(&out, "--writable", "");
    if (values[HOME] && !values[NO_HOME])
        option(&out, "--home", "");
    if (values[ENTRYPOINT] && !values[NO_ENTRYPOINT])
        option(&out, "--entrypoint", "");
    if (out.full) {
        slurm_error("udi: the options of the container are too long");
        return FAILED;
    }
    /* With --export=NONE there is none, and udi-run looks for its Python there. */
    if (spank_getenv(spank, "PATH", found, sizeof found) != ESPANK_SUCCESS)
        strcpy(found, "/usr/local/bin:/usr/bin:/bin");
    if (snprintf(search, sizeof search, "%s%s%s", path ? path : "", path ? ":" : "", found) >= ROOM ||
        set(spank, "PATH", search) != ESPANK_SUCCESS)
        return FAILED;
    if (set(spank, "UDI_TASK_OPTIONS", out.data) || set(spank, "UDI_TASK_COMMAND", argv[0]))
        return FAILED;
    argv[0] = strdup(task);
    return argv[0] ? ESPANK_SUCCESS : FAILED;
}
