/* Who started this rank, and the name of the container of its ranks: node/launcher.py. */
#include "joiner.h"
#include "tables.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Whether a process has the variable `mark`, NAME=VALUE, in its environment. */
static bool is_rank(long pid, const char *mark)
{
    struct text block = {0};
    char *path = number_in("/proc/", (unsigned long long)pid, "/environ");
    bool found = false, good = read_file(path, &block, SIZE_MAX / 8);
    for (size_t at = 0; good && !found && at < block.length; at += strlen(block.at + at) + 1)
        found = strcmp(block.at + at, mark) == 0;
    free(block.at);
    return found;
}

/* The nearest ancestor whose environment lacks `mark`: each rank may have wrapper scripts. */
static long starter(const char *mark)
{
    long pid = getppid(), parent;
    unsigned long long start_time;
    while (pid > 1 && is_rank(pid, mark) && start_and_parent(pid, &start_time, &parent))
        pid = parent;
    return pid;
}

static char *job_of(const struct list *env)
{
    const char *sge = get_or(env, "SGE_TASK_ID", NULL), *id = get_or(env, "JOB_ID", NULL);
    const char *pbs = get_or(env, "PBS_JOBID", NULL), *lsf = get_or(env, "LSB_JOBID", NULL);
    const char *index = get(env, "LSB_JOBINDEX");
    if (pbs)
        return JOIN("pbs ", pbs);
    if (sge && id)
        return JOIN("sge ", id, ".", sge);
    return lsf ? JOIN("lsf ", lsf, ".", index ? index : "0") : NULL;
}

static bool is_step(const struct list *env)
{
    return get_or(env, "SLURM_JOB_ID", NULL) && get_or(env, "SLURM_STEP_ID", NULL) &&
           get_or(env, "SLURM_PROCID", NULL);
}

static bool is_flux(const struct list *env)
{
    return get_or(env, "FLUX_JOB_ID", NULL) && get_or(env, "FLUX_TASK_RANK", NULL);
}

bool is_ranked(const struct list *env)
{
    return is_step(env) || is_flux(env) || get_or(env, "PALS_APID", NULL) || first_set(env, RANKS);
}

char *launcher(const struct list *env, const char *share)
{
    if (strcmp(share, "off") == 0)
        return NULL;
    if (strcmp(share, "auto") != 0)
        return JOIN("name ", share);
    if (is_step(env))
        return JOIN("slurm ", get(env, "SLURM_JOB_ID"), ".", get(env, "SLURM_STEP_ID"), " ",
                    get_or(env, "SLURMD_NODENAME", ""));
    if (get_or(env, "PALS_APID", NULL))
        return JOIN("pals ", get(env, "PALS_APID"));
    if (is_flux(env))
        return JOIN("flux ", get(env, "FLUX_JOB_ID"), " ", get_or(env, "FLUX_URI", ""));
    const char *job = job_of(env), *rank = first_set(env, RANKS);
    if (!rank && !job)
        return NULL;
    long pid = rank ? starter(JOIN(rank, "=", get(env, rank))) : getppid();
    char *number = number_in(job ? JOIN(job, " ") : "mpi ", (unsigned long long)pid, ".");
    return number_in(number, started(pid), "");
}

static void part(struct text *key, const char *name, const char *value)
{
    add_bytes(key, "", 1); /* NUL stands between the parts */
    add(key, name);
    add(key, "=");
    add(key, value);
}

static bool is_relative(const char *image)
{
    static const char *const schemes[] = {"oci:", "oci-archive:", "docker-archive:", NULL};
    for (const char *const *one = schemes; *one; one++)
        if (starts(image, *one))
            return image[strlen(*one)] != '/';
    return *image == '.' || (*image != '/' && is_image(image));
}

/* FNV-1a of 128 bits, as base/digest.py has it. */
void digest(const struct text *data, struct text *name)
{
    unsigned __int128 found = (unsigned __int128)0x6C62272E07BB0142u << 64 | 0x62B821756295C58Du;
    const unsigned __int128 prime = (unsigned __int128)1 << 88 | 0x13B;
    for (size_t i = 0; i < data->length; i++)
        found = (found ^ (unsigned char)data->at[i]) * prime;
    for (int shift = 124; shift >= 0; shift -= 4)
        add_bytes(name, "0123456789abcdef" + (unsigned)(found >> shift & 15), 1);
}

void container_key(const struct request *request, const char *who, const struct list *env,
                   struct text *key, struct text *name)
{
    add(key, "udi " RECORD_FORMAT);
    add_bytes(key, "", 1);
    add(key, who);
    add_bytes(key, "", 1);
    add(key, number_in("gid ", getgid(), ""));
    for (size_t i = 0; i < OPTION_COUNT; i++) {
        const struct given *one = &request->options[i];
        if (!OPTIONS[i].shares || i == O_share || !one->set)
            continue;
        if (OPTIONS[i].kind != LIST)
            part(key, OPTIONS[i].name, one->value);
        for (size_t k = 0; k < one->values.count; k++)
            part(key, OPTIONS[i].name, one->values.at[k]);
    }
    if (is_relative(request->image)) {
        char *folder = getcwd(NULL, 0);
        if (!folder)
            hand_over();
        part(key, "cwd", folder);
    }
    for (size_t i = 0; PLANNED[i]; i++)
        if (get(env, PLANNED[i]))
            part(key, PLANNED[i], get(env, PLANNED[i]));
    add(name, starts(who, "keep") ? "keep-" : "");
    digest(key, name);
}
