// What a program of its own prints of its rounds: litmus7's block.
//
// In pieces, as race.h says.
#pragma once
#include "race.h"

//= report: engine
static const char *name_of(char kind, int32_t value, char *room)
{
    static const struct { int32_t number; const char *name; } errnos[] = {
        {EPERM, "EPERM"}, {ENOENT, "ENOENT"}, {ESRCH, "ESRCH"}, {EINTR, "EINTR"}, {EAGAIN, "EAGAIN"}, {ENOMEM, "ENOMEM"},
        {EACCES, "EACCES"}, {EFAULT, "EFAULT"}, {EBUSY, "EBUSY"}, {EEXIST, "EEXIST"}, {EINVAL, "EINVAL"}};
    if (kind == 's' && value == -SIGBUS) return "-SIGBUS";
    if (kind == 's' && value == -SIGSEGV) return "-SIGSEGV";
    if (value == WAITS) return "waits";
    sprintf(room, "%d", (int)value);
    for (size_t i = 0; kind == 'e' && i < sizeof errnos / sizeof *errnos; i++)
        if (value == -errnos[i].number) sprintf(room, "-%s", errnos[i].name);
    return room;
}

static int more_often(const void *a, const void *b)
{
    int64_t x = ((const struct outcome *)a)->count, y = ((const struct outcome *)b)->count;
    return x < y ? 1 : x > y ? -1 : 0;
}

// How many times more threads want to run than there are CPUs, at least 1: a round waits for each of them to have its turn.
static double crowded(void)
{
    double load = 0;
    getloadavg(&load, 1);
    load /= (double)sysconf(_SC_NPROCESSORS_ONLN);
    return load > 1 ? load : 1;
}

// The rounds in a process of their own, and then what litmus7 would print. 1: what the condition rules out was seen.
static UNUSED int run_and_report(const struct test *given, int64_t rounds)
{
    shared = mmap(0, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) return perror("mmap"), 2;
    pinned = 1;
    pid_t pid = fork();
    if (!pid) {
        setpgid(0, 0);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        long r = prepare(given);
        shared->ended = r < 0 ? (int32_t)r : (int32_t)run_rounds(rounds, 0);
        _exit(0);
    }
    if (pid < 0) return perror("fork"), 2;
    int64_t before = -1;
    int same = 0, given_up = 0;
    while (!waitpid(pid, 0, WNOHANG)) {
        usleep(100000);
        same = shared->rounds == before ? same + 1 : 0;
        before = shared->rounds;
        given_up = same >= 100 * crowded();
        if (!given_up) continue;
        printf("Round %lld did not end within %d s:", (long long)before + 1, same / 10);
        for (int t = 0; t < given->threads; t++)
            if (shared->at[t]) printf(" P%d in its operation %d", t, (int)shared->at[t]);
        printf("\n");
        kill(-pid, SIGKILL);
        waitpid(pid, 0, 0);
        break;
    }
    if (shared->ended < 0)
        printf("The initial state never came about: step %d: %s\n", (int)shared->setting_up, strerror(-shared->ended));
    qsort(shared->table, (size_t)shared->outcomes, sizeof *shared->table, more_often);
    int64_t positive = 0, negative = 0;
    printf("Test %s %s\nHistogram (%d states)\n", given->name,
           !strcmp(given->quantifier, "exists") ? "Allowed" : !strcmp(given->quantifier, "forall") ? "Required" : "Forbidden",
           (int)shared->outcomes);
    for (int i = 0; i < shared->outcomes; i++) {
        const struct outcome *o = &shared->table[i];
        int witness = given->holds(o->fields);
        char room[24];
        *(witness ? &positive : &negative) += o->count;
        printf("%-8lld%c>", (long long)o->count, witness && *given->condition ? '*' : ':');
        for (int f = 0; f < given->fields; f++)
            printf("%s%s=%s;", f ? " " : "", given->names[f], name_of(given->kinds[f], o->fields[f], room));
        printf("\n");
    }
    int ok = !strcmp(given->quantifier, "forall") ? !negative : !strcmp(given->quantifier, "exists") ? positive > 0 : !positive;
    if (*given->condition)
        printf("%s\n\nWitnesses\nPositive: %lld, Negative: %lld\nCondition %s %s is %svalidated\nObservation %s %s %lld %lld\n",
               ok ? "Ok" : "No", (long long)positive, (long long)negative, given->quantifier, given->condition,
               ok ? "" : "NOT ", given->name, !positive ? "Never" : negative ? "Sometimes" : "Always", (long long)positive,
               (long long)negative);
    if (shared->provoked)
        printf("Provoked %s %lld of %lld: the kernel was seen to do its part\n", given->name, (long long)shared->provoked,
               (long long)shared->rounds);
    printf("Time %s %.2f\n", given->name, (double)shared->ns / 1e9);
    return !ok && strcmp(given->quantifier, "exists") ? 1 : shared->ended < 0 || given_up ? 3 : 0;
}
