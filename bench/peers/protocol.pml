/*
 * Moving an anonymous page under the rmap walkers: see ../protocol.md.
 * Every label below is one numbered step of that description.
 *
 * spin -a -DNW=1 -DNR=1 protocol.pml; gcc -O2 -DSAFETY -DNOREDUCE -o pan pan.c; ./pan -m200000
 */
#ifndef NW
#define NW 1		/* page_referenced walkers */
#endif
#ifndef NR
#define NR 1		/* remappers: even ones move 0 -> 1, odd ones 1 -> 0 */
#endif
#ifndef RF
#define RF 1		/* recheck in the trylock fast path */
#endif
#ifndef RS
#define RS 1		/* recheck in the slow path */
#endif
#ifndef RP
#define RP 1		/* recheck in split */
#endif
#ifndef IO
#define IO 1		/* index stored before mapping */
#endif
#ifndef SR
#define SR 1		/* split reads mapping once */
#endif
#ifndef MC
#define MC 1		/* remap requires mapcount == 1 */
#endif
#ifndef DF
#define DF 0		/* source is MADV_DONTFORK */
#endif

#define NONE  0
#define HUGE  1
#define SPLITTING 2

/* the page */
byte mapping = 0;	/* anon_vma 0 (A) or 1 (B) */
byte pidx = 0;		/* 0: offset of the source, 1: of the destination */
byte mapcount = 1;
byte plock = 0;
byte compound = 1;
/* anon_vmas A and B */
byte ref[2] = 1;
byte rd[2] = 0;
byte wr[2] = 0;
byte live[2] = 1;
/* vmas: 0 source (in A), 1 destination (in B), 2 the child's copy of 0 (in A) */
byte linked[3];
byte pte[3];
byte ptl = 0;
/* mmap_sem */
byte mm_rd = 0;
byte mm_wr = 0;

#define UNLOCKED(x)	(rd[x] == 0 && wr[x] == 0)
/* the vmas of anon_vma x are x and x + 2 as far as they exist: 0 and 2 in A, 1 in B */
#define LAST(w)		(w + 2 > 2)
#define FOUND(w, j)	(linked[w] && j == (w == 1))

/* what the mover requires of the pair of PTEs and of the page */
#define MOVABLE	(pte[s] == HUGE && pte[d] == NONE && (!MC || mapcount == 1))

proctype remap(byte s; byte d)
{
	byte a = 0;

R1:	d_step { mm_wr == 0; mm_rd++ }
R2:	if
	:: ptl == 0 && pte[s] != SPLITTING && MOVABLE && linked[s] && linked[d]
	:: ptl == 0 && pte[s] != SPLITTING && !(MOVABLE && linked[s] && linked[d]) -> goto R15
	fi;
R3:	d_step { plock == 0; plock = 1 }
R4:	a = mapping;
R5:	d_step { assert(ref[a] > 0); ref[a]++ }
R6:	d_step { UNLOCKED(a); assert(live[a]); wr[a] = 1 }
R7:	d_step { ptl == 0; ptl = 1 }
R8:	if
	:: MOVABLE
	:: else -> goto R11
	fi;
R9a:	d_step { if :: IO -> pidx = d :: else -> mapping = d fi }
R9b:	d_step { if :: IO -> mapping = d :: else -> pidx = d fi }
R10a:	pte[s] = NONE;
R10b:	pte[d] = HUGE;
R11:	ptl = 0;
R12:	d_step { assert(live[a]); wr[a] = 0 }
R13:	d_step { ref[a]--; assert(ref[a] > 0) }
R14:	plock = 0;
R15:	mm_rd--;
end:	false
}

#define STABLE	assert(live[a] && mapping == a && pidx == i)

proctype walker()
{
	byte a = 0, i = 0, v = 0, again = 0;

	/* page_lock_anon_vma_read */
W1:	a = mapping;
W2:	if
	:: mapcount > 0
	:: else -> goto end
	fi;
W3:	if
	:: d_step { wr[a] == 0; rd[a]++ }
	:: wr[a] != 0 -> goto W7
	fi;
W4:	if
	:: RF && mapping != a -> goto W4u
	:: else
	fi;
W5:	if
	:: mapcount > 0 -> goto W14
	:: else
	fi;
W6:	rd[a]--;
	goto end;
W4u:	rd[a]--;
	goto W1;
W7:	if
	:: d_step { ref[a] > 0; ref[a]++ }
	:: ref[a] == 0 -> goto end
	fi;
W8:	if
	:: mapcount > 0
	:: d_step { mapcount == 0; again = 0 }; goto P1
	fi;
W9:	d_step { wr[a] == 0; assert(live[a]); rd[a]++ }
W10:	if
	:: RS && mapping != a
	:: else -> goto W12
	fi;
W11:	d_step { rd[a]--; again = 1 }
	goto P1;
W12:	if
	:: d_step { ref[a] > 1; ref[a]-- }; goto W14
	:: d_step { ref[a] == 1; ref[a]-- }
	fi;
W13:	d_step { rd[a]--; again = 0 }
	goto P2;

	/* page_referenced */
W14:	if
	:: d_step { assert(live[a] && mapping == a); i = pidx; v = a }
	fi;
W15:	if
	:: FOUND(v, i)
	:: d_step { !FOUND(v, i) && !LAST(v); v = v + 2 }; goto W15
	:: !FOUND(v, i) && LAST(v) -> goto W18
	fi;
W16:	d_step { ptl == 0; ptl = 1 }
W17:	if
	:: d_step { !LAST(v); STABLE; ptl = 0; v = v + 2 }; goto W15
	:: d_step { LAST(v); STABLE; ptl = 0 }
	fi;
W18:	if
	:: d_step { STABLE; rd[a]-- }
	fi;
	goto end;

	/* put_anon_vma */
P1:	if
	:: d_step { ref[a] > 1 && again; ref[a]-- }; goto W1
	:: d_step { ref[a] > 1 && !again; ref[a]-- }; goto end
	:: d_step { ref[a] <= 1; assert(ref[a] == 1); ref[a] = 0 }
	fi;
P2:	if
	:: UNLOCKED(a) -> goto P5
	:: else
	fi;
P3:	d_step { UNLOCKED(a); wr[a] = 1 }
P4:	wr[a] = 0;
P5:	if
	:: d_step { again; assert(live[a]); live[a] = 0 }; goto W1
	:: d_step { !again; assert(live[a]); live[a] = 0 }
	fi;
end:	false
}

proctype splitter()
{
	byte m = 0, a = 0, i = 0, v = 0, c = 0, again = 0;

S1:	if
	:: d_step { SR; m = mapping; a = m }; goto S3
	:: d_step { !SR; m = mapping }
	fi;
S2:	a = mapping;
S3:	if
	:: mapcount > 0
	:: else -> goto end
	fi;
S4:	if
	:: d_step { ref[a] > 0; ref[a]++ }
	:: ref[a] == 0 -> goto end
	fi;
S5:	if
	:: mapcount > 0
	:: d_step { mapcount == 0; again = 0 }; goto P1
	fi;
S6:	d_step { UNLOCKED(a); assert(live[a]); wr[a] = 1 }
S7:	if
	:: RP && mapping != m
	:: else -> goto S9
	fi;
S8:	d_step { wr[a] = 0; again = 1 }
	goto P1;
S9:	if
	:: compound
	:: else -> goto S17
	fi;
S10:	d_step { i = pidx; v = a; c = 0 }
S11:	if
	:: FOUND(v, i)
	:: d_step { !FOUND(v, i) && !LAST(v); v = v + 2 }; goto S11
	:: !FOUND(v, i) && LAST(v) -> goto S15
	fi;
S12:	d_step { ptl == 0; ptl = 1 }
S13:	d_step { if :: pte[v] == HUGE -> pte[v] = SPLITTING; c++ :: else fi }
S14:	if
	:: d_step { !LAST(v); ptl = 0; v = v + 2 }; goto S11
	:: d_step { LAST(v); ptl = 0 }
	fi;
S15:	assert(c == mapcount);
S16:	d_step {
		ptl == 0;
		compound = 0;
		if :: pte[0] == SPLITTING -> pte[0] = HUGE :: else fi;
		if :: pte[1] == SPLITTING -> pte[1] = HUGE :: else fi;
		if :: pte[2] == SPLITTING -> pte[2] = HUGE :: else fi
	}
S17:	if
	:: d_step { assert(live[a]); wr[a] = 0; again = 0 }
	fi;

P1:	if
	:: d_step { ref[a] > 1 && again; ref[a]-- }; goto S1
	:: d_step { ref[a] > 1 && !again; ref[a]-- }; goto end
	:: d_step { ref[a] <= 1; assert(ref[a] == 1); ref[a] = 0 }
	fi;
P2:	if
	:: UNLOCKED(a) -> goto P5
	:: else
	fi;
P3:	d_step { UNLOCKED(a); wr[a] = 1 }
P4:	wr[a] = 0;
P5:	if
	:: d_step { again; assert(live[a]); live[a] = 0 }; goto S1
	:: d_step { !again; assert(live[a]); live[a] = 0 }
	fi;
end:	false
}

proctype forker()
{
K1:	d_step { mm_rd == 0 && mm_wr == 0; mm_wr = 1 }
K2:	if
	:: !DF && linked[0]
	:: else -> goto K10
	fi;
K3:	d_step { UNLOCKED(0); assert(live[0]); wr[0] = 1 }
K4:	linked[2] = 1;
K5:	d_step { assert(live[0]); wr[0] = 0 }
K6:	d_step { ptl == 0 && pte[0] != SPLITTING; ptl = 1 }
K7:	if
	:: d_step { pte[0] == HUGE; mapcount++ }
	:: pte[0] == NONE -> goto K9
	fi;
K8:	pte[2] = HUGE;
K9:	ptl = 0;
K10:	mm_wr = 0;
end:	false
}

proctype munmapper()
{
	byte last = 0;

M1:	d_step { mm_rd == 0 && mm_wr == 0; mm_wr = 1 }
M2:	d_step { ptl == 0 && pte[0] != SPLITTING; ptl = 1 }
M3:	if
	:: d_step { pte[0] == HUGE; pte[0] = NONE }
	:: pte[0] == NONE -> goto M5
	fi;
M4:	mapcount--;
M5:	ptl = 0;
M6:	d_step { UNLOCKED(0); assert(live[0]); wr[0] = 1 }
M7:	d_step { linked[0] = 0; last = !linked[2] }
M8:	if
	:: d_step { last; assert(live[0]); wr[0] = 0 }
	:: d_step { !last; assert(live[0]); wr[0] = 0 }; goto M10
	fi;
M9:	if
	:: d_step { ref[0] > 1; ref[0]-- }; goto M10
	:: d_step { ref[0] <= 1; assert(ref[0] == 1); ref[0] = 0 }
	fi;
P2:	if
	:: UNLOCKED(0) -> goto P5
	:: else
	fi;
P3:	d_step { UNLOCKED(0); wr[0] = 1 }
P4:	wr[0] = 0;
P5:	if
	:: d_step { assert(live[0]); live[0] = 0 }
	fi;
M10:	mm_wr = 0;
end:	false
}

init {
	byte n = 0;

	d_step {
		linked[0] = 1; linked[1] = 1;
		pte[0] = HUGE
	}
	atomic {
		do
		:: n < NR -> run remap(n % 2, 1 - n % 2); n++
		:: n == NR -> break
		od;
		n = 0;
		do
		:: n < NW -> run walker(); n++
		:: n == NW -> break
		od;
		run splitter();
#ifndef NOFORK
		run forker();
#endif
#ifndef NOMUNMAP
		run munmapper();
#endif
		n = 0
	}
end:	false
}
