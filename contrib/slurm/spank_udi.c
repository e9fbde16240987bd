/* spank_udi: --image, --module, --volume and --environment for srun, sbatch and salloc.
 *
 * The options become UDI_IMAGE, UDI_MODULE, UDI_VOLUME and UDI_EDF in the job's and the steps'
 * environment, which udi-run reads in place of its own options. Nothing is mounted or run here: the
 * plugin holds no privilege that it would need (slurmstepd loads it as root, and it only sets
 * variables).
 *
 * An option of a step wins over the job's, and both over variables, also over ones set inside the
 * job: srun reads the job's options anew. Slurm keeps the last of a repeated option only, so
 * several volumes are one value: SRC:DST;SRC:DST.
 *
 * What is wrong with the site's line in plugstack.conf, or with an option that another plugin has
 * already, ends the steps and jobs that ask for one of these options, and none of the others.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <slurm/spank.h>

SPANK_PLUGIN(udi, 1)

enum { IMAGE, MODULE, VOLUME, ENVIRONMENT, COUNT };

static const char *const names[COUNT] = {"UDI_IMAGE", "UDI_MODULE", "UDI_VOLUME", "UDI_EDF"};
static char *values[COUNT];
/* Why no option can be used, "" where they can. */
static char broken[256];
/* What a hook returns so that nothing runs: of the positive ESPANK_ERROR, Slurm only writes a line. */
#define FAILED -1
/* Why this node's tasks can't run, "" where they can: of a task's hook alone the user sees the line. */
static char failed[300];

/* Values travel in environment variables and through slurmctld: a size at which both are far from
 * their limits, and a mistake (a file's content in place of its name) is still told at submission. */
#define LONGEST 4096

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
    if (*broken && !remote) {
        slurm_error("udi: %s", broken);
        return ESPANK_BAD_ARG;
    }
    if (!text || !*text || strlen(text) >= LONGEST || strpbrk(text, "\n\r")) {
        slurm_error("udi: this option needs one line of 1 to %d characters", LONGEST - 1);
        return ESPANK_BAD_ARG;
    }
    char *copy = strdup(text);
    if (!copy)
        return ESPANK_ERROR;
    free(values[which]);
    values[which] = copy;
    return ESPANK_SUCCESS;
}

static struct spank_option options[] = {
    {"image", "IMAGE", "image for udi-run in this job or step", 1, IMAGE, taken},
    {"module", "A,B|none", "site modules for udi-run", 1, MODULE, taken},
    {"volume", "SRC:DST[;...]", "bind SRC of the host to DST in the image", 1, VOLUME, taken},
    {"environment", "NAME|FILE", "environment definition file for udi-run", 1, ENVIRONMENT, taken},
    SPANK_OPTIONS_TABLE_END,
};

int slurm_spank_init(spank_t spank, int argc, char **argv)
{
    if (argc)
        broke("plugstack.conf: %s: spank_udi.so takes no words", argv[0]);
    for (int i = 0; i < COUNT; i++)
        if (spank_option_register(spank, &options[i]) != ESPANK_SUCCESS)
            broke("option --%s cannot be registered (another plugin's?)", options[i].name);
    return ESPANK_SUCCESS;
}

static int lost(const char *name)
{
    snprintf(failed, sizeof failed, "%s cannot be set", name);
    slurm_error("udi: %s", failed);
    return FAILED;
}

/* srun, sbatch, salloc: their environment becomes the job's. The job-control variable is for
 * --export=NONE, where nothing of that environment arrives: it comes back as SLURM_SPANK_NAME. */
static int submit(spank_t spank)
{
    for (int i = 0; i < COUNT; i++)
        if (values[i] && (setenv(names[i], values[i], 1) ||
                          spank_job_control_setenv(spank, names[i], values[i], 1) != ESPANK_SUCCESS))
            return lost(names[i]);
    return ESPANK_SUCCESS;
}

/* slurmstepd. A step has its own options; a batch script has not even the job's, other than as
 * job-control variables. */
static void start(spank_t spank)
{
    char buffer[LONGEST * 4], key[64];

    for (int i = 0; i < COUNT; i++) {
        const char *value = values[i];
        if (value && *broken) {
            /* In srun nothing was wrong: this node's plugstack.conf differs. */
            memcpy(failed, broken, sizeof broken);
            return;
        }
        snprintf(key, sizeof key, "SLURM_SPANK_%s", names[i]);
        /* A variable that is too long for the buffer is there too. */
        if (!value && spank_getenv(spank, names[i], buffer, sizeof buffer) == ESPANK_ENV_NOEXIST &&
            (spank_getenv(spank, key, buffer, sizeof buffer) == ESPANK_SUCCESS ||
             spank_job_control_getenv(spank, names[i], buffer, sizeof buffer) == ESPANK_SUCCESS))
            value = buffer;
        if (value && spank_setenv(spank, names[i], value, 1) != ESPANK_SUCCESS)
            lost(names[i]);
    }
}

int slurm_spank_init_post_opt(spank_t spank, int argc, char **argv)
{
    (void)argc, (void)argv;
    switch (spank_context()) {
    case S_CTX_LOCAL:
    case S_CTX_ALLOCATOR:
        return submit(spank);
    case S_CTX_REMOTE:
        start(spank);
        return ESPANK_SUCCESS;
    default:
        return ESPANK_SUCCESS;
    }
}

/* A node on which a whole step or script can't be launched may be drained; a task just fails. */
int slurm_spank_task_init(spank_t spank, int argc, char **argv)
{
    (void)spank, (void)argc, (void)argv;
    if (*failed)
        slurm_error("udi: %s", failed);
    return *failed ? FAILED : ESPANK_SUCCESS;
}
