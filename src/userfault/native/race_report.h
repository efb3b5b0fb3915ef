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

static volatile sig_atomic_t interrupted; // by which signal

static void on_interrupt(int sig) { interrupted = sig; }

static int usage(FILE *to, const struct test *given, const char *program)
{
    fprintf(to, "Usage: %s [ROUNDS [SECONDS]]\n\n"
            "Race the threads of %s on the running kernel, each round on a fresh initial state, and count the outcomes.\n\n"
            "ROUNDS   how many, from 1 on (10000)\n"
            "SECONDS  it ends then, whatever its rounds (10; 0: no limit)\n\n"
            "How far it is goes to stderr every second. Interrupted (Ctrl-C), it prints what it has seen so far.\n"
            "Exit codes: 0 nothing that the condition rules out was seen, 1 something was, 2 usage, 3 a round did not end, or the\n"
            "initial state never came about, 130 interrupted.\n",
            program, given->name);
    return to == stderr ? 2 : 0;
}

// A decimal number, or -1 for what is none from `least` to `most`.
static int64_t number_in(const char *text, int64_t least, int64_t most)
{
    char *end;
    errno = 0;
    long long n = strtoll(text, &end, 10);
    return end != text && !*end && !errno && n >= least && n <= most ? n : -1;
}

static void show_progress(int64_t rounds, int last)
{
    int line = isatty(2);
    if (last && line) fprintf(stderr, "\r\x1b[K");
    if (last) return;
    fprintf(stderr, "%s%lld of %lld rounds, %d outcomes so far%s", line ? "\r" : "", (long long)shared->rounds,
            (long long)rounds, (int)shared->outcomes, line ? "" : "\n");
}

// The rounds in a process of their own, and then what litmus7 would print.
static UNUSED int run_and_report(const struct test *given, int count, char **arguments)
{
    for (int i = 1; i < count; i++)
        if (!strcmp(arguments[i], "-h") || !strcmp(arguments[i], "--help")) return usage(stdout, given, arguments[0]);
    int64_t rounds = count > 1 ? number_in(arguments[1], 1, INT64_MAX) : 10000;
    int64_t seconds = count > 2 ? number_in(arguments[2], 0, 1000000000) : 10;
    if (rounds < 0 || seconds < 0 || count > 3) return usage(stderr, given, arguments[0]);
    shared = mmap(0, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) return perror("mmap"), 2;
    pinned = 1;
    pid_t pid = fork();
    if (!pid) {
        setpgid(0, 0);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        long r = prepare(given);
        shared->ended = r < 0 ? (int32_t)r : (int32_t)run_rounds(rounds, seconds * 1000000000);
        _exit(0);
    }
    if (pid < 0) return perror("fork"), 2;
    struct sigaction action = {.sa_handler = on_interrupt};
    sigaction(SIGINT, &action, 0);
    sigaction(SIGTERM, &action, 0);
    int64_t before = -1;
    int same = 0, given_up = 0;
    for (int looks = 1; !waitpid(pid, 0, WNOHANG); looks++) {
        usleep(100000);
        if (interrupted) {
            kill(-pid, SIGKILL);
            waitpid(pid, 0, 0);
            break;
        }
        if (looks % 10 == 0) show_progress(rounds, 0);
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
    show_progress(rounds, 1);
    if (interrupted) printf("Interrupted after %lld rounds\n", (long long)shared->rounds);
    // A short run ends before a state that never comes about is given up.
    if (!shared->ended && !shared->outcomes) shared->ended = (int32_t)shared->failure;
    if (shared->ended < 0)
        printf("The initial state never came about: step %d: %s (what it needs is at the head of its source)\n",
               (int)shared->setting_up, strerror(-shared->ended));
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
    if (*given->condition && shared->outcomes)
        printf("%s\n\nWitnesses\nPositive: %lld, Negative: %lld\nCondition %s %s is %svalidated\nObservation %s %s %lld %lld\n",
               ok ? "Ok" : "No", (long long)positive, (long long)negative, given->quantifier, given->condition,
               ok ? "" : "NOT ", given->name, !positive ? "Never" : negative ? "Sometimes" : "Always", (long long)positive,
               (long long)negative);
    if (shared->provoked)
        printf("Provoked %s %lld of %lld: the kernel was seen to do its part\n", given->name, (long long)shared->provoked,
               (long long)shared->rounds);
    printf("Time %s %.2f\n", given->name, (double)shared->ns / 1e9);
    if (interrupted) return 128 + interrupted;
    return !ok && strcmp(given->quantifier, "exists") ? 1 : shared->ended < 0 || given_up ? 3 : 0;
}
