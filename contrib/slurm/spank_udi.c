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
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <slurm/spank.h>

SPANK_PLUGIN(udi, 1)

enum { IMAGE, MODULE, VOLUME, ENVIRONMENT, COUNT };

static const char *const names[COUNT] = {"UDI_IMAGE", "UDI_MODULE", "UDI_VOLUME", "UDI_EDF"};
static char *values[COUNT];

/* Values travel in environment variables and through slurmctld: a size at which both are far from
 * their limits, and a mistake (a file's content in place of its name) is still told at submission. */
#define LONGEST 4096

static int taken(int which, const char *text, int remote)
{
    (void)remote;
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
    (void)argc, (void)argv;
    for (int i = 0; i < COUNT; i++)
        if (spank_option_register(spank, &options[i]) != ESPANK_SUCCESS) {
            slurm_error("udi: option --%s cannot be registered (another plugin's?)", options[i].name);
            return ESPANK_ERROR;
        }
    return ESPANK_SUCCESS;
}

/* srun, sbatch, salloc: their environment becomes the job's. The job-control variable is for
 * --export=NONE, where nothing of that environment arrives: it comes back as SLURM_SPANK_NAME. */
static void submit(spank_t spank)
{
    for (int i = 0; i < COUNT; i++)
        if (values[i]) {
            setenv(names[i], values[i], 1);
            spank_job_control_setenv(spank, names[i], values[i], 1);
        }
}

/* slurmstepd. A step has its own options; a batch script has not even the job's, other than as
 * job-control variables. */
static void start(spank_t spank)
{
    char buffer[LONGEST * 4], key[64];

    for (int i = 0; i < COUNT; i++) {
        if (values[i]) {
            spank_setenv(spank, names[i], values[i], 1);
            continue;
        }
        if (spank_getenv(spank, names[i], buffer, sizeof buffer) == ESPANK_SUCCESS)
            continue;
        snprintf(key, sizeof key, "SLURM_SPANK_%s", names[i]);
        if (spank_getenv(spank, key, buffer, sizeof buffer) == ESPANK_SUCCESS ||
            spank_job_control_getenv(spank, names[i], buffer, sizeof buffer) == ESPANK_SUCCESS)
            spank_setenv(spank, names[i], buffer, 1);
    }
}

int slurm_spank_init_post_opt(spank_t spank, int argc, char **argv)
{
    (void)argc, (void)argv;
    switch (spank_context()) {
    case S_CTX_LOCAL:
    case S_CTX_ALLOCATOR:
        submit(spank);
        break;
    case S_CTX_REMOTE:
        start(spank);
        break;
    default:
        break;
    }
    return ESPANK_SUCCESS;
}
