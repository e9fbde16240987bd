/* Who shares a container that is kept (--keep): node/kept.py, plan/keeping.py. */
#include "joiner.h"
#include "tables.h"

#include <string.h>

static const char *const JOBS[] = {"SLURM_JOB_ID", "PBS_JOBID", "JOB_ID", "LSB_JOBID", NULL};

/* What one start would leave to the next; --share=NAME says who that is. */
static bool refused(const struct request *request)
{
    const struct given *options = request->options;
    const char *share = options[O_share].set ? options[O_share].value : "auto";
    if (strcmp(share, "auto") != 0 && strcmp(share, "off") != 0)
        return false;
    if (options[O_writable].set || options[O_trace].set)
        return true;
    for (size_t i = 0; i < options[O_volume].values.count; i++)
        if (strstr(options[O_volume].values.at[i], "perNodeCache"))
            return true;
    return false;
}

static bool is_pulled(const struct request *request)
{
    const struct given *pull = &request->options[O_pull];
    return pull->set && strcmp(pull->value, "always") == 0;
}

/* Python says what is wrong with a --keep, and whether what can't be kept was asked for. */
void check_keep(const struct request *request)
{
    const struct given *keep = &request->options[O_keep], *share = &request->options[O_share];
    unsigned long long seconds;
    if (keep->set && (is_pulled(request) || !digits(keep->value, strlen(keep->value), 5, &seconds) ||
                      seconds > KEEP_MOST || refused(request) ||
                      (share->set && strcmp(share->value, "off") == 0)))
        hand_over();
}

static bool is_within(const char *path, const char *folder)
{
    size_t length = strlen(folder);
    if (strcmp(path, folder) == 0)
        return true;
    while (length && folder[length - 1] == '/')
        length--;
    return strncmp(path, folder, length) == 0 && path[length] == '/';
}

/* Whether a volume, SRC or SRC:SRC, has brought a folder in; one with quotes says nothing. */
static bool brings(const char *volume, const char *name)
{
    struct text source = {0}, target = {0};
    size_t length = strcspn(volume, ":");
    const char *rest = volume + length;
    add(&source, "");
    add_bytes(&source, volume, length);
    if (*rest)
        rest++;
    add(&target, "");
    add_bytes(&target, rest, strcspn(rest, ":"));
    return *source.at == '/' && (!*target.at || strcmp(source.at, target.at) == 0) &&
           source.at[strspn(source.at, KEEP_PLAIN)] == 0 && is_within(name, source.at);
}

static bool is_covered(const struct request *request, const struct list *env, const char *name)
{
    const struct list *volumes = &request->options[O_volume].values;
    const char *home = get_or(env, "HOME", "");
    if (request->options[O_home].set && *home == '/' && is_within(name, home))
        return true;
    for (size_t i = 0; i < volumes->count; i++)
        if (brings(volumes->at[i], name))
            return true;
    return false;
}

char *keep_owner(const struct request *request, const struct list *env)
{
    const struct given *share = &request->options[O_share];
    if ((share->set && strcmp(share->value, "auto") != 0) || refused(request) ||
        is_pulled(request) || is_ranked(env))
        return NULL;
    struct text who = {0}, cgroup = {0};
    struct list names = {0};
    const char *const *job = JOBS;
    while (*job && !get_or(env, *job, NULL))
        job++;
    add(&who, *job ? JOIN("keep ", *job, "=", get(env, *job)) : "keep");
    add(&who, "\n");
    if (!read_file("/proc/self/cgroup", &cgroup, 1 << 20) && cgroup.length)
        hand_over();
    add(&who, cgroup.at);
    bool here = !request->options[O_no_cwd].set && !request->options[O_shifter].set, all = true;
    if (here)
        current_names(&names, env);
    for (size_t i = 0; i < names.count; i++)
        all = all && is_covered(request, env, names.at[i]);
    for (size_t i = 0; !all && i < names.count; i++)
        add(&who, JOIN("\n", names.at[i]));
    return who.at;
}
