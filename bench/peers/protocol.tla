------------------------------ MODULE protocol ------------------------------
(* Moving an anonymous page under the rmap walkers: see ../protocol.md.      *)
(* Every label below is one numbered step of that description.  The text     *)
(* between BEGIN and END TRANSLATION is made by pcal.trans from what stands   *)
(* above it.                                                                 *)
EXTENDS Integers, TLC

CONSTANTS NW,        \* page_referenced walkers
          NR,        \* remappers: even ones move 0 -> 1, odd ones 1 -> 0
          FORK, UNMAP, \* is there a forker, a munmapper
          RF, RS, RP,  \* rechecks: trylock fast path, slow path, split
          IO,        \* index stored before mapping
          SR,        \* split reads mapping once
          MC,        \* remap requires mapcount = 1
          DF         \* the source is MADV_DONTFORK

NONE == 0
HUGE == 1
SPLITTING == 2

Vmas == 0..2      \* 0 source (in A), 1 destination (in B), 2 the child's copy of 0 (in A)
Avs == 0..1       \* 0 is A, 1 is B
Last(w) == w + 2 > 2
Src(p) == p[2] % 2
Dst(p) == 1 - Src(p)
Offset(w) == IF w = 1 THEN 1 ELSE 0

(* --algorithm protocol
variables
  mapping = 0, pidx = 0, mapcount = 1, plock = FALSE, compound = TRUE,
  ref = [x \in Avs |-> 1], rd = [x \in Avs |-> 0],
  wr = [x \in Avs |-> FALSE], live = [x \in Avs |-> TRUE],
  linked = [w \in Vmas |-> w # 2], pte = [w \in Vmas |-> IF w = 0 THEN HUGE ELSE NONE],
  ptl = FALSE, mm_rd = 0, mm_wr = FALSE;

define
  Unlocked(x) == rd[x] = 0 /\ ~wr[x]
  Movable(s, d) == pte[s] = HUGE /\ pte[d] = NONE /\ (MC => mapcount = 1)
  Stable(x, j) == live[x] /\ mapping = x /\ pidx = j
  Found(w, j) == linked[w] /\ j = Offset(w)
end define;

process remap \in {<<"remap", n>> : n \in 0..(NR - 1)}
variables ra = 0;
begin
R1:   await ~mm_wr; mm_rd := mm_rd + 1;
R2:   await ~ptl /\ pte[Src(self)] # SPLITTING;
      if ~(Movable(Src(self), Dst(self)) /\ linked[0] /\ linked[1]) then goto R15 end if;
R3:   await ~plock; plock := TRUE;
R4:   ra := mapping;
R5:   assert ref[ra] > 0; ref[ra] := ref[ra] + 1;
R6:   await Unlocked(ra); assert live[ra]; wr[ra] := TRUE;
R7:   await ~ptl; ptl := TRUE;
R8:   if ~Movable(Src(self), Dst(self)) then goto R11 end if;
R9a:  if IO then pidx := Dst(self) else mapping := Dst(self) end if;
R9b:  if IO then mapping := Dst(self) else pidx := Dst(self) end if;
R10a: pte[Src(self)] := NONE;
R10b: pte[Dst(self)] := HUGE;
R11:  ptl := FALSE;
R12:  assert live[ra]; wr[ra] := FALSE;
R13:  assert ref[ra] > 1; ref[ra] := ref[ra] - 1;
R14:  plock := FALSE;
R15:  mm_rd := mm_rd - 1;
end process;

process walker \in {<<"walker", n>> : n \in 0..(NW - 1)}
variables wa = 0, wi = 0, wv = 0, wagain = FALSE;
begin
W1:   wa := mapping;
W2:   if mapcount = 0 then goto Done end if;
W3:   if wr[wa] then goto W7 else rd[wa] := rd[wa] + 1 end if;
W4:   if RF /\ mapping # wa then goto W4u end if;
W5:   if mapcount > 0 then goto W14 end if;
W6:   rd[wa] := rd[wa] - 1; goto Done;
W4u:  rd[wa] := rd[wa] - 1; goto W1;
W7:   if ref[wa] = 0 then goto Done else ref[wa] := ref[wa] + 1 end if;
W8:   if mapcount = 0 then wagain := FALSE; goto WP1 end if;
W9:   await ~wr[wa]; assert live[wa]; rd[wa] := rd[wa] + 1;
W10:  if ~(RS /\ mapping # wa) then goto W12 end if;
W11:  rd[wa] := rd[wa] - 1; wagain := TRUE; goto WP1;
W12:  ref[wa] := ref[wa] - 1;
      if ref[wa] > 0 then goto W14 end if;
W13:  rd[wa] := rd[wa] - 1; wagain := FALSE; goto WP2;
W14:  assert live[wa] /\ mapping = wa;
      wi := pidx; wv := wa;
W15:  if ~Found(wv, wi) then
        if Last(wv) then goto W18 else wv := wv + 2; goto W15 end if
      end if;
W16:  await ~ptl; ptl := TRUE;
W17:  assert Stable(wa, wi); ptl := FALSE;
      if ~Last(wv) then wv := wv + 2; goto W15 end if;
W18:  assert Stable(wa, wi); rd[wa] := rd[wa] - 1; goto Done;
WP1:  assert ref[wa] > 0; ref[wa] := ref[wa] - 1;
      if ref[wa] > 0 then
        if wagain then goto W1 else goto Done end if
      end if;
WP2:  if Unlocked(wa) then goto WP5 end if;
WP3:  await Unlocked(wa); wr[wa] := TRUE;
WP4:  wr[wa] := FALSE;
WP5:  assert live[wa]; live[wa] := FALSE;
      if wagain then goto W1 end if;
end process;

process splitter = <<"splitter", 0>>
variables sm = 0, sa = 0, si = 0, sv = 0, sc = 0, sagain = FALSE;
begin
S1:   sm := mapping;
      if SR then sa := sm; goto S3 end if;
S2:   sa := mapping;
S3:   if mapcount = 0 then goto Done end if;
S4:   if ref[sa] = 0 then goto Done else ref[sa] := ref[sa] + 1 end if;
S5:   if mapcount = 0 then sagain := FALSE; goto SP1 end if;
S6:   await Unlocked(sa); assert live[sa]; wr[sa] := TRUE;
S7:   if ~(RP /\ mapping # sm) then goto S9 end if;
S8:   wr[sa] := FALSE; sagain := TRUE; goto SP1;
S9:   if ~compound then goto S17 end if;
S10:  si := pidx; sv := sa; sc := 0;
S11:  if ~Found(sv, si) then
        if Last(sv) then goto S15 else sv := sv + 2; goto S11 end if
      end if;
S12:  await ~ptl; ptl := TRUE;
S13:  if pte[sv] = HUGE then pte[sv] := SPLITTING; sc := sc + 1 end if;
S14:  ptl := FALSE;
      if ~Last(sv) then sv := sv + 2; goto S11 end if;
S15:  assert sc = mapcount;
S16:  await ~ptl; compound := FALSE;
      pte := [w \in Vmas |-> IF pte[w] = SPLITTING THEN HUGE ELSE pte[w]];
S17:  assert live[sa]; wr[sa] := FALSE; sagain := FALSE;
SP1:  assert ref[sa] > 0; ref[sa] := ref[sa] - 1;
      if ref[sa] > 0 then
        if sagain then goto S1 else goto Done end if
      end if;
SP2:  if Unlocked(sa) then goto SP5 end if;
SP3:  await Unlocked(sa); wr[sa] := TRUE;
SP4:  wr[sa] := FALSE;
SP5:  assert live[sa]; live[sa] := FALSE;
      if sagain then goto S1 end if;
end process;

process forker \in (IF FORK THEN {<<"forker", 0>>} ELSE {})
begin
K1:   await mm_rd = 0 /\ ~mm_wr; mm_wr := TRUE;
K2:   if DF \/ ~linked[0] then goto K10 end if;
K3:   await Unlocked(0); assert live[0]; wr[0] := TRUE;
K4:   linked[2] := TRUE;
K5:   assert live[0]; wr[0] := FALSE;
K6:   await ~ptl /\ pte[0] # SPLITTING; ptl := TRUE;
K7:   if pte[0] = NONE then goto K9 else mapcount := mapcount + 1 end if;
K8:   pte[2] := HUGE;
K9:   ptl := FALSE;
K10:  mm_wr := FALSE;
end process;

process munmapper \in (IF UNMAP THEN {<<"munmapper", 0>>} ELSE {})
variables mlast = FALSE;
begin
M1:   await mm_rd = 0 /\ ~mm_wr; mm_wr := TRUE;
M2:   await ~ptl /\ pte[0] # SPLITTING; ptl := TRUE;
M3:   if pte[0] = NONE then goto M5 else pte[0] := NONE end if;
M4:   mapcount := mapcount - 1;
M5:   ptl := FALSE;
M6:   await Unlocked(0); assert live[0]; wr[0] := TRUE;
M7:   linked[0] := FALSE; mlast := ~linked[2];
M8:   assert live[0]; wr[0] := FALSE;
      if ~mlast then goto M10 end if;
M9:   assert ref[0] > 0; ref[0] := ref[0] - 1;
      if ref[0] > 0 then goto M10 end if;
MP2:  if Unlocked(0) then goto MP5 end if;
MP3:  await Unlocked(0); wr[0] := TRUE;
MP4:  wr[0] := FALSE;
MP5:  assert live[0]; live[0] := FALSE;
M10:  mm_wr := FALSE;
end process;
end algorithm; *)
\* BEGIN TRANSLATION PCal-19b50e20a01f6de1660144b584d7f67e
VARIABLES mapping, pidx, mapcount, plock, compound, ref, rd, wr, live, linked, 
          pte, ptl, mm_rd, mm_wr, pc

(* define statement *)
Unlocked(x) == rd[x] = 0 /\ ~wr[x]
Movable(s, d) == pte[s] = HUGE /\ pte[d] = NONE /\ (MC => mapcount = 1)
Stable(x, j) == live[x] /\ mapping = x /\ pidx = j
Found(w, j) == linked[w] /\ j = Offset(w)

VARIABLES ra, wa, wi, wv, wagain, sm, sa, si, sv, sc, sagain, mlast

vars == << mapping, pidx, mapcount, plock, compound, ref, rd, wr, live, 
           linked, pte, ptl, mm_rd, mm_wr, pc, ra, wa, wi, wv, wagain, sm, sa, 
           si, sv, sc, sagain, mlast >>

ProcSet == ({<<"remap", n>> : n \in 0..(NR - 1)}) \cup ({<<"walker", n>> : n \in 0..(NW - 1)}) \cup {<<"splitter", 0>>} \cup ((IF FORK THEN {<<"forker", 0>>} ELSE {})) \cup ((IF UNMAP THEN {<<"munmapper", 0>>} ELSE {}))

Init == (* Global variables *)
        /\ mapping = 0
        /\ pidx = 0
        /\ mapcount = 1
        /\ plock = FALSE
        /\ compound = TRUE
        /\ ref = [x \in Avs |-> 1]
        /\ rd = [x \in Avs |-> 0]
        /\ wr = [x \in Avs |-> FALSE]
        /\ live = [x \in Avs |-> TRUE]
        /\ linked = [w \in Vmas |-> w # 2]
        /\ pte = [w \in Vmas |-> IF w = 0 THEN HUGE ELSE NONE]
        /\ ptl = FALSE
        /\ mm_rd = 0
        /\ mm_wr = FALSE
        (* Process remap *)
        /\ ra = [self \in {<<"remap", n>> : n \in 0..(NR - 1)} |-> 0]
        (* Process walker *)
        /\ wa = [self \in {<<"walker", n>> : n \in 0..(NW - 1)} |-> 0]
        /\ wi = [self \in {<<"walker", n>> : n \in 0..(NW - 1)} |-> 0]
        /\ wv = [self \in {<<"walker", n>> : n \in 0..(NW - 1)} |-> 0]
        /\ wagain = [self \in {<<"walker", n>> : n \in 0..(NW - 1)} |-> FALSE]
        (* Process splitter *)
        /\ sm = 0
        /\ sa = 0
        /\ si = 0
        /\ sv = 0
        /\ sc = 0
        /\ sagain = FALSE
        (* Process munmapper *)
        /\ mlast = [self \in (IF UNMAP THEN {<<"munmapper", 0>>} ELSE {}) |-> FALSE]
        /\ pc = [self \in ProcSet |-> CASE self \in {<<"remap", n>> : n \in 0..(NR - 1)} -> "R1"
                                        [] self \in {<<"walker", n>> : n \in 0..(NW - 1)} -> "W1"
                                        [] self = <<"splitter", 0>> -> "S1"
                                        [] self \in (IF FORK THEN {<<"forker", 0>>} ELSE {}) -> "K1"
                                        [] self \in (IF UNMAP THEN {<<"munmapper", 0>>} ELSE {}) -> "M1"]

R1(self) == /\ pc[self] = "R1"
            /\ ~mm_wr
            /\ mm_rd' = mm_rd + 1
            /\ pc' = [pc EXCEPT ![self] = "R2"]
            /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                            wr, live, linked, pte, ptl, mm_wr, ra, wa, wi, wv, 
                            wagain, sm, sa, si, sv, sc, sagain, mlast >>

R2(self) == /\ pc[self] = "R2"
            /\ ~ptl /\ pte[Src(self)] # SPLITTING
            /\ IF ~(Movable(Src(self), Dst(self)) /\ linked[0] /\ linked[1])
                  THEN /\ pc' = [pc EXCEPT ![self] = "R15"]
                  ELSE /\ pc' = [pc EXCEPT ![self] = "R3"]
            /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                            wr, live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, 
                            wi, wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

R3(self) == /\ pc[self] = "R3"
            /\ ~plock
            /\ plock' = TRUE
            /\ pc' = [pc EXCEPT ![self] = "R4"]
            /\ UNCHANGED << mapping, pidx, mapcount, compound, ref, rd, wr, 
                            live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, 
                            wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

R4(self) == /\ pc[self] = "R4"
            /\ ra' = [ra EXCEPT ![self] = mapping]
            /\ pc' = [pc EXCEPT ![self] = "R5"]
            /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                            wr, live, linked, pte, ptl, mm_rd, mm_wr, wa, wi, 
                            wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

R5(self) == /\ pc[self] = "R5"
            /\ Assert(ref[ra[self]] > 0, 
                      "Failure of assertion at line 51, column 7.")
            /\ ref' = [ref EXCEPT ![ra[self]] = ref[ra[self]] + 1]
            /\ pc' = [pc EXCEPT ![self] = "R6"]
            /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, rd, wr, 
                            live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, 
                            wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

R6(self) == /\ pc[self] = "R6"
            /\ Unlocked(ra[self])
            /\ Assert(live[ra[self]], 
                      "Failure of assertion at line 52, column 27.")
            /\ wr' = [wr EXCEPT ![ra[self]] = TRUE]
            /\ pc' = [pc EXCEPT ![self] = "R7"]
            /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                            live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, 
                            wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

R7(self) == /\ pc[self] = "R7"
            /\ ~ptl
            /\ ptl' = TRUE
            /\ pc' = [pc EXCEPT ![self] = "R8"]
            /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                            wr, live, linked, pte, mm_rd, mm_wr, ra, wa, wi, 
                            wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

R8(self) == /\ pc[self] = "R8"
            /\ IF ~Movable(Src(self), Dst(self))
                  THEN /\ pc' = [pc EXCEPT ![self] = "R11"]
                  ELSE /\ pc' = [pc EXCEPT ![self] = "R9a"]
            /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                            wr, live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, 
                            wi, wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

R9a(self) == /\ pc[self] = "R9a"
             /\ IF IO
                   THEN /\ pidx' = Dst(self)
                        /\ UNCHANGED mapping
                   ELSE /\ mapping' = Dst(self)
                        /\ pidx' = pidx
             /\ pc' = [pc EXCEPT ![self] = "R9b"]
             /\ UNCHANGED << mapcount, plock, compound, ref, rd, wr, live, 
                             linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, wv, 
                             wagain, sm, sa, si, sv, sc, sagain, mlast >>

R9b(self) == /\ pc[self] = "R9b"
             /\ IF IO
                   THEN /\ mapping' = Dst(self)
                        /\ pidx' = pidx
                   ELSE /\ pidx' = Dst(self)
                        /\ UNCHANGED mapping
             /\ pc' = [pc EXCEPT ![self] = "R10a"]
             /\ UNCHANGED << mapcount, plock, compound, ref, rd, wr, live, 
                             linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, wv, 
                             wagain, sm, sa, si, sv, sc, sagain, mlast >>

R10a(self) == /\ pc[self] = "R10a"
              /\ pte' = [pte EXCEPT ![Src(self)] = NONE]
              /\ pc' = [pc EXCEPT ![self] = "R10b"]
              /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, 
                              rd, wr, live, linked, ptl, mm_rd, mm_wr, ra, wa, 
                              wi, wv, wagain, sm, sa, si, sv, sc, sagain, 
                              mlast >>

R10b(self) == /\ pc[self] = "R10b"
              /\ pte' = [pte EXCEPT ![Dst(self)] = HUGE]
              /\ pc' = [pc EXCEPT ![self] = "R11"]
              /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, 
                              rd, wr, live, linked, ptl, mm_rd, mm_wr, ra, wa, 
                              wi, wv, wagain, sm, sa, si, sv, sc, sagain, 
                              mlast >>

R11(self) == /\ pc[self] = "R11"
             /\ ptl' = FALSE
             /\ pc' = [pc EXCEPT ![self] = "R12"]
             /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                             wr, live, linked, pte, mm_rd, mm_wr, ra, wa, wi, 
                             wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

R12(self) == /\ pc[self] = "R12"
             /\ Assert(live[ra[self]], 
                       "Failure of assertion at line 60, column 7.")
             /\ wr' = [wr EXCEPT ![ra[self]] = FALSE]
             /\ pc' = [pc EXCEPT ![self] = "R13"]
             /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                             live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, 
                             wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

R13(self) == /\ pc[self] = "R13"
             /\ Assert(ref[ra[self]] > 1, 
                       "Failure of assertion at line 61, column 7.")
             /\ ref' = [ref EXCEPT ![ra[self]] = ref[ra[self]] - 1]
             /\ pc' = [pc EXCEPT ![self] = "R14"]
             /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, rd, wr, 
                             live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, 
                             wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

R14(self) == /\ pc[self] = "R14"
             /\ plock' = FALSE
             /\ pc' = [pc EXCEPT ![self] = "R15"]
             /\ UNCHANGED << mapping, pidx, mapcount, compound, ref, rd, wr, 
                             live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, 
                             wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

R15(self) == /\ pc[self] = "R15"
             /\ mm_rd' = mm_rd - 1
             /\ pc' = [pc EXCEPT ![self] = "Done"]
             /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                             wr, live, linked, pte, ptl, mm_wr, ra, wa, wi, wv, 
                             wagain, sm, sa, si, sv, sc, sagain, mlast >>

remap(self) == R1(self) \/ R2(self) \/ R3(self) \/ R4(self) \/ R5(self)
                  \/ R6(self) \/ R7(self) \/ R8(self) \/ R9a(self)
                  \/ R9b(self) \/ R10a(self) \/ R10b(self) \/ R11(self)
                  \/ R12(self) \/ R13(self) \/ R14(self) \/ R15(self)

W1(self) == /\ pc[self] = "W1"
            /\ wa' = [wa EXCEPT ![self] = mapping]
            /\ pc' = [pc EXCEPT ![self] = "W2"]
            /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                            wr, live, linked, pte, ptl, mm_rd, mm_wr, ra, wi, 
                            wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

W2(self) == /\ pc[self] = "W2"
            /\ IF mapcount = 0
                  THEN /\ pc' = [pc EXCEPT ![self] = "Done"]
                  ELSE /\ pc' = [pc EXCEPT ![self] = "W3"]
            /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                            wr, live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, 
                            wi, wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

W3(self) == /\ pc[self] = "W3"
            /\ IF wr[wa[self]]
                  THEN /\ pc' = [pc EXCEPT ![self] = "W7"]
                       /\ rd' = rd
                  ELSE /\ rd' = [rd EXCEPT ![wa[self]] = rd[wa[self]] + 1]
                       /\ pc' = [pc EXCEPT ![self] = "W4"]
            /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, wr, 
                            live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, 
                            wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

W4(self) == /\ pc[self] = "W4"
            /\ IF RF /\ mapping # wa[self]
                  THEN /\ pc' = [pc EXCEPT ![self] = "W4u"]
                  ELSE /\ pc' = [pc EXCEPT ![self] = "W5"]
            /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                            wr, live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, 
                            wi, wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

W5(self) == /\ pc[self] = "W5"
            /\ IF mapcount > 0
                  THEN /\ pc' = [pc EXCEPT ![self] = "W14"]
                  ELSE /\ pc' = [pc EXCEPT ![self] = "W6"]
            /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                            wr, live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, 
                            wi, wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

W6(self) == /\ pc[self] = "W6"
            /\ rd' = [rd EXCEPT ![wa[self]] = rd[wa[self]] - 1]
            /\ pc' = [pc EXCEPT ![self] = "Done"]
            /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, wr, 
                            live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, 
                            wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

W4u(self) == /\ pc[self] = "W4u"
             /\ rd' = [rd EXCEPT ![wa[self]] = rd[wa[self]] - 1]
             /\ pc' = [pc EXCEPT ![self] = "W1"]
             /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, wr, 
                             live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, 
                             wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

W7(self) == /\ pc[self] = "W7"
            /\ IF ref[wa[self]] = 0
                  THEN /\ pc' = [pc EXCEPT ![self] = "Done"]
                       /\ ref' = ref
                  ELSE /\ ref' = [ref EXCEPT ![wa[self]] = ref[wa[self]] + 1]
                       /\ pc' = [pc EXCEPT ![self] = "W8"]
            /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, rd, wr, 
                            live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, 
                            wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

W8(self) == /\ pc[self] = "W8"
            /\ IF mapcount = 0
                  THEN /\ wagain' = [wagain EXCEPT ![self] = FALSE]
                       /\ pc' = [pc EXCEPT ![self] = "WP1"]
                  ELSE /\ pc' = [pc EXCEPT ![self] = "W9"]
                       /\ UNCHANGED wagain
            /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                            wr, live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, 
                            wi, wv, sm, sa, si, sv, sc, sagain, mlast >>

W9(self) == /\ pc[self] = "W9"
            /\ ~wr[wa[self]]
            /\ Assert(live[wa[self]], 
                      "Failure of assertion at line 78, column 22.")
            /\ rd' = [rd EXCEPT ![wa[self]] = rd[wa[self]] + 1]
            /\ pc' = [pc EXCEPT ![self] = "W10"]
            /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, wr, 
                            live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, 
                            wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

W10(self) == /\ pc[self] = "W10"
             /\ IF ~(RS /\ mapping # wa[self])
                   THEN /\ pc' = [pc EXCEPT ![self] = "W12"]
                   ELSE /\ pc' = [pc EXCEPT ![self] = "W11"]
             /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                             wr, live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, 
                             wi, wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

W11(self) == /\ pc[self] = "W11"
             /\ rd' = [rd EXCEPT ![wa[self]] = rd[wa[self]] - 1]
             /\ wagain' = [wagain EXCEPT ![self] = TRUE]
             /\ pc' = [pc EXCEPT ![self] = "WP1"]
             /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, wr, 
                             live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, 
                             wv, sm, sa, si, sv, sc, sagain, mlast >>

W12(self) == /\ pc[self] = "W12"
             /\ ref' = [ref EXCEPT ![wa[self]] = ref[wa[self]] - 1]
             /\ IF ref'[wa[self]] > 0
                   THEN /\ pc' = [pc EXCEPT ![self] = "W14"]
                   ELSE /\ pc' = [pc EXCEPT ![self] = "W13"]
             /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, rd, wr, 
                             live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, 
                             wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

W13(self) == /\ pc[self] = "W13"
             /\ rd' = [rd EXCEPT ![wa[self]] = rd[wa[self]] - 1]
             /\ wagain' = [wagain EXCEPT ![self] = FALSE]
             /\ pc' = [pc EXCEPT ![self] = "WP2"]
             /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, wr, 
                             live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, 
                             wv, sm, sa, si, sv, sc, sagain, mlast >>

W14(self) == /\ pc[self] = "W14"
             /\ Assert(live[wa[self]] /\ mapping = wa[self], 
                       "Failure of assertion at line 84, column 7.")
             /\ wi' = [wi EXCEPT ![self] = pidx]
             /\ wv' = [wv EXCEPT ![self] = wa[self]]
             /\ pc' = [pc EXCEPT ![self] = "W15"]
             /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                             wr, live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, 
                             wagain, sm, sa, si, sv, sc, sagain, mlast >>

W15(self) == /\ pc[self] = "W15"
             /\ IF ~Found(wv[self], wi[self])
                   THEN /\ IF Last(wv[self])
                              THEN /\ pc' = [pc EXCEPT ![self] = "W18"]
                                   /\ wv' = wv
                              ELSE /\ wv' = [wv EXCEPT ![self] = wv[self] + 2]
                                   /\ pc' = [pc EXCEPT ![self] = "W15"]
                   ELSE /\ pc' = [pc EXCEPT ![self] = "W16"]
                        /\ wv' = wv
             /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                             wr, live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, 
                             wi, wagain, sm, sa, si, sv, sc, sagain, mlast >>

W16(self) == /\ pc[self] = "W16"
             /\ ~ptl
             /\ ptl' = TRUE
             /\ pc' = [pc EXCEPT ![self] = "W17"]
             /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                             wr, live, linked, pte, mm_rd, mm_wr, ra, wa, wi, 
                             wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

W17(self) == /\ pc[self] = "W17"
             /\ Assert(Stable(wa[self], wi[self]), 
                       "Failure of assertion at line 90, column 7.")
             /\ ptl' = FALSE
             /\ IF ~Last(wv[self])
                   THEN /\ wv' = [wv EXCEPT ![self] = wv[self] + 2]
                        /\ pc' = [pc EXCEPT ![self] = "W15"]
                   ELSE /\ pc' = [pc EXCEPT ![self] = "W18"]
                        /\ wv' = wv
             /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                             wr, live, linked, pte, mm_rd, mm_wr, ra, wa, wi, 
                             wagain, sm, sa, si, sv, sc, sagain, mlast >>

W18(self) == /\ pc[self] = "W18"
             /\ Assert(Stable(wa[self], wi[self]), 
                       "Failure of assertion at line 92, column 7.")
             /\ rd' = [rd EXCEPT ![wa[self]] = rd[wa[self]] - 1]
             /\ pc' = [pc EXCEPT ![self] = "Done"]
             /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, wr, 
                             live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, 
                             wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

WP1(self) == /\ pc[self] = "WP1"
             /\ Assert(ref[wa[self]] > 0, 
                       "Failure of assertion at line 93, column 7.")
             /\ ref' = [ref EXCEPT ![wa[self]] = ref[wa[self]] - 1]
             /\ IF ref'[wa[self]] > 0
                   THEN /\ IF wagain[self]
                              THEN /\ pc' = [pc EXCEPT ![self] = "W1"]
                              ELSE /\ pc' = [pc EXCEPT ![self] = "Done"]
                   ELSE /\ pc' = [pc EXCEPT ![self] = "WP2"]
             /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, rd, wr, 
                             live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, 
                             wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

WP2(self) == /\ pc[self] = "WP2"
             /\ IF Unlocked(wa[self])
                   THEN /\ pc' = [pc EXCEPT ![self] = "WP5"]
                   ELSE /\ pc' = [pc EXCEPT ![self] = "WP3"]
             /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                             wr, live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, 
                             wi, wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

WP3(self) == /\ pc[self] = "WP3"
             /\ Unlocked(wa[self])
             /\ wr' = [wr EXCEPT ![wa[self]] = TRUE]
             /\ pc' = [pc EXCEPT ![self] = "WP4"]
             /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                             live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, 
                             wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

WP4(self) == /\ pc[self] = "WP4"
             /\ wr' = [wr EXCEPT ![wa[self]] = FALSE]
             /\ pc' = [pc EXCEPT ![self] = "WP5"]
             /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                             live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, 
                             wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

WP5(self) == /\ pc[self] = "WP5"
             /\ Assert(live[wa[self]], 
                       "Failure of assertion at line 100, column 7.")
             /\ live' = [live EXCEPT ![wa[self]] = FALSE]
             /\ IF wagain[self]
                   THEN /\ pc' = [pc EXCEPT ![self] = "W1"]
                   ELSE /\ pc' = [pc EXCEPT ![self] = "Done"]
             /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                             wr, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, 
                             wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

walker(self) == W1(self) \/ W2(self) \/ W3(self) \/ W4(self) \/ W5(self)
                   \/ W6(self) \/ W4u(self) \/ W7(self) \/ W8(self)
                   \/ W9(self) \/ W10(self) \/ W11(self) \/ W12(self)
                   \/ W13(self) \/ W14(self) \/ W15(self) \/ W16(self)
                   \/ W17(self) \/ W18(self) \/ WP1(self) \/ WP2(self)
                   \/ WP3(self) \/ WP4(self) \/ WP5(self)

S1 == /\ pc[<<"splitter", 0>>] = "S1"
      /\ sm' = mapping
      /\ IF SR
            THEN /\ sa' = sm'
                 /\ pc' = [pc EXCEPT ![<<"splitter", 0>>] = "S3"]
            ELSE /\ pc' = [pc EXCEPT ![<<"splitter", 0>>] = "S2"]
                 /\ sa' = sa
      /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, wr, 
                      live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, wv, 
                      wagain, si, sv, sc, sagain, mlast >>

S2 == /\ pc[<<"splitter", 0>>] = "S2"
      /\ sa' = mapping
      /\ pc' = [pc EXCEPT ![<<"splitter", 0>>] = "S3"]
      /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, wr, 
                      live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, wv, 
                      wagain, sm, si, sv, sc, sagain, mlast >>

S3 == /\ pc[<<"splitter", 0>>] = "S3"
      /\ IF mapcount = 0
            THEN /\ pc' = [pc EXCEPT ![<<"splitter", 0>>] = "Done"]
            ELSE /\ pc' = [pc EXCEPT ![<<"splitter", 0>>] = "S4"]
      /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, wr, 
                      live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, wv, 
                      wagain, sm, sa, si, sv, sc, sagain, mlast >>

S4 == /\ pc[<<"splitter", 0>>] = "S4"
      /\ IF ref[sa] = 0
            THEN /\ pc' = [pc EXCEPT ![<<"splitter", 0>>] = "Done"]
                 /\ ref' = ref
            ELSE /\ ref' = [ref EXCEPT ![sa] = ref[sa] + 1]
                 /\ pc' = [pc EXCEPT ![<<"splitter", 0>>] = "S5"]
      /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, rd, wr, live, 
                      linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, wv, wagain, 
                      sm, sa, si, sv, sc, sagain, mlast >>

S5 == /\ pc[<<"splitter", 0>>] = "S5"
      /\ IF mapcount = 0
            THEN /\ sagain' = FALSE
                 /\ pc' = [pc EXCEPT ![<<"splitter", 0>>] = "SP1"]
            ELSE /\ pc' = [pc EXCEPT ![<<"splitter", 0>>] = "S6"]
                 /\ UNCHANGED sagain
      /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, wr, 
                      live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, wv, 
                      wagain, sm, sa, si, sv, sc, mlast >>

S6 == /\ pc[<<"splitter", 0>>] = "S6"
      /\ Unlocked(sa)
      /\ Assert(live[sa], "Failure of assertion at line 113, column 27.")
      /\ wr' = [wr EXCEPT ![sa] = TRUE]
      /\ pc' = [pc EXCEPT ![<<"splitter", 0>>] = "S7"]
      /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, live, 
                      linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, wv, wagain, 
                      sm, sa, si, sv, sc, sagain, mlast >>

S7 == /\ pc[<<"splitter", 0>>] = "S7"
      /\ IF ~(RP /\ mapping # sm)
            THEN /\ pc' = [pc EXCEPT ![<<"splitter", 0>>] = "S9"]
            ELSE /\ pc' = [pc EXCEPT ![<<"splitter", 0>>] = "S8"]
      /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, wr, 
                      live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, wv, 
                      wagain, sm, sa, si, sv, sc, sagain, mlast >>

S8 == /\ pc[<<"splitter", 0>>] = "S8"
      /\ wr' = [wr EXCEPT ![sa] = FALSE]
      /\ sagain' = TRUE
      /\ pc' = [pc EXCEPT ![<<"splitter", 0>>] = "SP1"]
      /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, live, 
                      linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, wv, wagain, 
                      sm, sa, si, sv, sc, mlast >>

S9 == /\ pc[<<"splitter", 0>>] = "S9"
      /\ IF ~compound
            THEN /\ pc' = [pc EXCEPT ![<<"splitter", 0>>] = "S17"]
            ELSE /\ pc' = [pc EXCEPT ![<<"splitter", 0>>] = "S10"]
      /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, wr, 
                      live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, wv, 
                      wagain, sm, sa, si, sv, sc, sagain, mlast >>

S10 == /\ pc[<<"splitter", 0>>] = "S10"
       /\ si' = pidx
       /\ sv' = sa
       /\ sc' = 0
       /\ pc' = [pc EXCEPT ![<<"splitter", 0>>] = "S11"]
       /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, wr, 
                       live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, wv, 
                       wagain, sm, sa, sagain, mlast >>

S11 == /\ pc[<<"splitter", 0>>] = "S11"
       /\ IF ~Found(sv, si)
             THEN /\ IF Last(sv)
                        THEN /\ pc' = [pc EXCEPT ![<<"splitter", 0>>] = "S15"]
                             /\ sv' = sv
                        ELSE /\ sv' = sv + 2
                             /\ pc' = [pc EXCEPT ![<<"splitter", 0>>] = "S11"]
             ELSE /\ pc' = [pc EXCEPT ![<<"splitter", 0>>] = "S12"]
                  /\ sv' = sv
       /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, wr, 
                       live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, wv, 
                       wagain, sm, sa, si, sc, sagain, mlast >>

S12 == /\ pc[<<"splitter", 0>>] = "S12"
       /\ ~ptl
       /\ ptl' = TRUE
       /\ pc' = [pc EXCEPT ![<<"splitter", 0>>] = "S13"]
       /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, wr, 
                       live, linked, pte, mm_rd, mm_wr, ra, wa, wi, wv, wagain, 
                       sm, sa, si, sv, sc, sagain, mlast >>

S13 == /\ pc[<<"splitter", 0>>] = "S13"
       /\ IF pte[sv] = HUGE
             THEN /\ pte' = [pte EXCEPT ![sv] = SPLITTING]
                  /\ sc' = sc + 1
             ELSE /\ TRUE
                  /\ UNCHANGED << pte, sc >>
       /\ pc' = [pc EXCEPT ![<<"splitter", 0>>] = "S14"]
       /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, wr, 
                       live, linked, ptl, mm_rd, mm_wr, ra, wa, wi, wv, wagain, 
                       sm, sa, si, sv, sagain, mlast >>

S14 == /\ pc[<<"splitter", 0>>] = "S14"
       /\ ptl' = FALSE
       /\ IF ~Last(sv)
             THEN /\ sv' = sv + 2
                  /\ pc' = [pc EXCEPT ![<<"splitter", 0>>] = "S11"]
             ELSE /\ pc' = [pc EXCEPT ![<<"splitter", 0>>] = "S15"]
                  /\ sv' = sv
       /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, wr, 
                       live, linked, pte, mm_rd, mm_wr, ra, wa, wi, wv, wagain, 
                       sm, sa, si, sc, sagain, mlast >>

S15 == /\ pc[<<"splitter", 0>>] = "S15"
       /\ Assert(sc = mapcount, 
                 "Failure of assertion at line 125, column 7.")
       /\ pc' = [pc EXCEPT ![<<"splitter", 0>>] = "S16"]
       /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, wr, 
                       live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, wv, 
                       wagain, sm, sa, si, sv, sc, sagain, mlast >>

S16 == /\ pc[<<"splitter", 0>>] = "S16"
       /\ ~ptl
       /\ compound' = FALSE
       /\ pte' = [w \in Vmas |-> IF pte[w] = SPLITTING THEN HUGE ELSE pte[w]]
       /\ pc' = [pc EXCEPT ![<<"splitter", 0>>] = "S17"]
       /\ UNCHANGED << mapping, pidx, mapcount, plock, ref, rd, wr, live, 
                       linked, ptl, mm_rd, mm_wr, ra, wa, wi, wv, wagain, sm, 
                       sa, si, sv, sc, sagain, mlast >>

S17 == /\ pc[<<"splitter", 0>>] = "S17"
       /\ Assert(live[sa], "Failure of assertion at line 128, column 7.")
       /\ wr' = [wr EXCEPT ![sa] = FALSE]
       /\ sagain' = FALSE
       /\ pc' = [pc EXCEPT ![<<"splitter", 0>>] = "SP1"]
       /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, live, 
                       linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, wv, wagain, 
                       sm, sa, si, sv, sc, mlast >>

SP1 == /\ pc[<<"splitter", 0>>] = "SP1"
       /\ Assert(ref[sa] > 0, "Failure of assertion at line 129, column 7.")
       /\ ref' = [ref EXCEPT ![sa] = ref[sa] - 1]
       /\ IF ref'[sa] > 0
             THEN /\ IF sagain
                        THEN /\ pc' = [pc EXCEPT ![<<"splitter", 0>>] = "S1"]
                        ELSE /\ pc' = [pc EXCEPT ![<<"splitter", 0>>] = "Done"]
             ELSE /\ pc' = [pc EXCEPT ![<<"splitter", 0>>] = "SP2"]
       /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, rd, wr, live, 
                       linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, wv, wagain, 
                       sm, sa, si, sv, sc, sagain, mlast >>

SP2 == /\ pc[<<"splitter", 0>>] = "SP2"
       /\ IF Unlocked(sa)
             THEN /\ pc' = [pc EXCEPT ![<<"splitter", 0>>] = "SP5"]
             ELSE /\ pc' = [pc EXCEPT ![<<"splitter", 0>>] = "SP3"]
       /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, wr, 
                       live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, wv, 
                       wagain, sm, sa, si, sv, sc, sagain, mlast >>

SP3 == /\ pc[<<"splitter", 0>>] = "SP3"
       /\ Unlocked(sa)
       /\ wr' = [wr EXCEPT ![sa] = TRUE]
       /\ pc' = [pc EXCEPT ![<<"splitter", 0>>] = "SP4"]
       /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, live, 
                       linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, wv, wagain, 
                       sm, sa, si, sv, sc, sagain, mlast >>

SP4 == /\ pc[<<"splitter", 0>>] = "SP4"
       /\ wr' = [wr EXCEPT ![sa] = FALSE]
       /\ pc' = [pc EXCEPT ![<<"splitter", 0>>] = "SP5"]
       /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, live, 
                       linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, wv, wagain, 
                       sm, sa, si, sv, sc, sagain, mlast >>

SP5 == /\ pc[<<"splitter", 0>>] = "SP5"
       /\ Assert(live[sa], "Failure of assertion at line 136, column 7.")
       /\ live' = [live EXCEPT ![sa] = FALSE]
       /\ IF sagain
             THEN /\ pc' = [pc EXCEPT ![<<"splitter", 0>>] = "S1"]
             ELSE /\ pc' = [pc EXCEPT ![<<"splitter", 0>>] = "Done"]
       /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, wr, 
                       linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, wv, wagain, 
                       sm, sa, si, sv, sc, sagain, mlast >>

splitter == S1 \/ S2 \/ S3 \/ S4 \/ S5 \/ S6 \/ S7 \/ S8 \/ S9 \/ S10
               \/ S11 \/ S12 \/ S13 \/ S14 \/ S15 \/ S16 \/ S17 \/ SP1
               \/ SP2 \/ SP3 \/ SP4 \/ SP5

K1(self) == /\ pc[self] = "K1"
            /\ mm_rd = 0 /\ ~mm_wr
            /\ mm_wr' = TRUE
            /\ pc' = [pc EXCEPT ![self] = "K2"]
            /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                            wr, live, linked, pte, ptl, mm_rd, ra, wa, wi, wv, 
                            wagain, sm, sa, si, sv, sc, sagain, mlast >>

K2(self) == /\ pc[self] = "K2"
            /\ IF DF \/ ~linked[0]
                  THEN /\ pc' = [pc EXCEPT ![self] = "K10"]
                  ELSE /\ pc' = [pc EXCEPT ![self] = "K3"]
            /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                            wr, live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, 
                            wi, wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

K3(self) == /\ pc[self] = "K3"
            /\ Unlocked(0)
            /\ Assert(live[0], 
                      "Failure of assertion at line 144, column 26.")
            /\ wr' = [wr EXCEPT ![0] = TRUE]
            /\ pc' = [pc EXCEPT ![self] = "K4"]
            /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                            live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, 
                            wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

K4(self) == /\ pc[self] = "K4"
            /\ linked' = [linked EXCEPT ![2] = TRUE]
            /\ pc' = [pc EXCEPT ![self] = "K5"]
            /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                            wr, live, pte, ptl, mm_rd, mm_wr, ra, wa, wi, wv, 
                            wagain, sm, sa, si, sv, sc, sagain, mlast >>

K5(self) == /\ pc[self] = "K5"
            /\ Assert(live[0], "Failure of assertion at line 146, column 7.")
            /\ wr' = [wr EXCEPT ![0] = FALSE]
            /\ pc' = [pc EXCEPT ![self] = "K6"]
            /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                            live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, 
                            wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

K6(self) == /\ pc[self] = "K6"
            /\ ~ptl /\ pte[0] # SPLITTING
            /\ ptl' = TRUE
            /\ pc' = [pc EXCEPT ![self] = "K7"]
            /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                            wr, live, linked, pte, mm_rd, mm_wr, ra, wa, wi, 
                            wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

K7(self) == /\ pc[self] = "K7"
            /\ IF pte[0] = NONE
                  THEN /\ pc' = [pc EXCEPT ![self] = "K9"]
                       /\ UNCHANGED mapcount
                  ELSE /\ mapcount' = mapcount + 1
                       /\ pc' = [pc EXCEPT ![self] = "K8"]
            /\ UNCHANGED << mapping, pidx, plock, compound, ref, rd, wr, live, 
                            linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, wv, 
                            wagain, sm, sa, si, sv, sc, sagain, mlast >>

K8(self) == /\ pc[self] = "K8"
            /\ pte' = [pte EXCEPT ![2] = HUGE]
            /\ pc' = [pc EXCEPT ![self] = "K9"]
            /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                            wr, live, linked, ptl, mm_rd, mm_wr, ra, wa, wi, 
                            wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

K9(self) == /\ pc[self] = "K9"
            /\ ptl' = FALSE
            /\ pc' = [pc EXCEPT ![self] = "K10"]
            /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                            wr, live, linked, pte, mm_rd, mm_wr, ra, wa, wi, 
                            wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

K10(self) == /\ pc[self] = "K10"
             /\ mm_wr' = FALSE
             /\ pc' = [pc EXCEPT ![self] = "Done"]
             /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                             wr, live, linked, pte, ptl, mm_rd, ra, wa, wi, wv, 
                             wagain, sm, sa, si, sv, sc, sagain, mlast >>

forker(self) == K1(self) \/ K2(self) \/ K3(self) \/ K4(self) \/ K5(self)
                   \/ K6(self) \/ K7(self) \/ K8(self) \/ K9(self)
                   \/ K10(self)

M1(self) == /\ pc[self] = "M1"
            /\ mm_rd = 0 /\ ~mm_wr
            /\ mm_wr' = TRUE
            /\ pc' = [pc EXCEPT ![self] = "M2"]
            /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                            wr, live, linked, pte, ptl, mm_rd, ra, wa, wi, wv, 
                            wagain, sm, sa, si, sv, sc, sagain, mlast >>

M2(self) == /\ pc[self] = "M2"
            /\ ~ptl /\ pte[0] # SPLITTING
            /\ ptl' = TRUE
            /\ pc' = [pc EXCEPT ![self] = "M3"]
            /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                            wr, live, linked, pte, mm_rd, mm_wr, ra, wa, wi, 
                            wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

M3(self) == /\ pc[self] = "M3"
            /\ IF pte[0] = NONE
                  THEN /\ pc' = [pc EXCEPT ![self] = "M5"]
                       /\ pte' = pte
                  ELSE /\ pte' = [pte EXCEPT ![0] = NONE]
                       /\ pc' = [pc EXCEPT ![self] = "M4"]
            /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                            wr, live, linked, ptl, mm_rd, mm_wr, ra, wa, wi, 
                            wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

M4(self) == /\ pc[self] = "M4"
            /\ mapcount' = mapcount - 1
            /\ pc' = [pc EXCEPT ![self] = "M5"]
            /\ UNCHANGED << mapping, pidx, plock, compound, ref, rd, wr, live, 
                            linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, wv, 
                            wagain, sm, sa, si, sv, sc, sagain, mlast >>

M5(self) == /\ pc[self] = "M5"
            /\ ptl' = FALSE
            /\ pc' = [pc EXCEPT ![self] = "M6"]
            /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                            wr, live, linked, pte, mm_rd, mm_wr, ra, wa, wi, 
                            wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

M6(self) == /\ pc[self] = "M6"
            /\ Unlocked(0)
            /\ Assert(live[0], 
                      "Failure of assertion at line 162, column 26.")
            /\ wr' = [wr EXCEPT ![0] = TRUE]
            /\ pc' = [pc EXCEPT ![self] = "M7"]
            /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                            live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, 
                            wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

M7(self) == /\ pc[self] = "M7"
            /\ linked' = [linked EXCEPT ![0] = FALSE]
            /\ mlast' = [mlast EXCEPT ![self] = ~linked'[2]]
            /\ pc' = [pc EXCEPT ![self] = "M8"]
            /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                            wr, live, pte, ptl, mm_rd, mm_wr, ra, wa, wi, wv, 
                            wagain, sm, sa, si, sv, sc, sagain >>

M8(self) == /\ pc[self] = "M8"
            /\ Assert(live[0], "Failure of assertion at line 164, column 7.")
            /\ wr' = [wr EXCEPT ![0] = FALSE]
            /\ IF ~mlast[self]
                  THEN /\ pc' = [pc EXCEPT ![self] = "M10"]
                  ELSE /\ pc' = [pc EXCEPT ![self] = "M9"]
            /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                            live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, 
                            wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

M9(self) == /\ pc[self] = "M9"
            /\ Assert(ref[0] > 0, 
                      "Failure of assertion at line 166, column 7.")
            /\ ref' = [ref EXCEPT ![0] = ref[0] - 1]
            /\ IF ref'[0] > 0
                  THEN /\ pc' = [pc EXCEPT ![self] = "M10"]
                  ELSE /\ pc' = [pc EXCEPT ![self] = "MP2"]
            /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, rd, wr, 
                            live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, 
                            wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

MP2(self) == /\ pc[self] = "MP2"
             /\ IF Unlocked(0)
                   THEN /\ pc' = [pc EXCEPT ![self] = "MP5"]
                   ELSE /\ pc' = [pc EXCEPT ![self] = "MP3"]
             /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                             wr, live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, 
                             wi, wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

MP3(self) == /\ pc[self] = "MP3"
             /\ Unlocked(0)
             /\ wr' = [wr EXCEPT ![0] = TRUE]
             /\ pc' = [pc EXCEPT ![self] = "MP4"]
             /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                             live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, 
                             wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

MP4(self) == /\ pc[self] = "MP4"
             /\ wr' = [wr EXCEPT ![0] = FALSE]
             /\ pc' = [pc EXCEPT ![self] = "MP5"]
             /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                             live, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, 
                             wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

MP5(self) == /\ pc[self] = "MP5"
             /\ Assert(live[0], 
                       "Failure of assertion at line 171, column 7.")
             /\ live' = [live EXCEPT ![0] = FALSE]
             /\ pc' = [pc EXCEPT ![self] = "M10"]
             /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                             wr, linked, pte, ptl, mm_rd, mm_wr, ra, wa, wi, 
                             wv, wagain, sm, sa, si, sv, sc, sagain, mlast >>

M10(self) == /\ pc[self] = "M10"
             /\ mm_wr' = FALSE
             /\ pc' = [pc EXCEPT ![self] = "Done"]
             /\ UNCHANGED << mapping, pidx, mapcount, plock, compound, ref, rd, 
                             wr, live, linked, pte, ptl, mm_rd, ra, wa, wi, wv, 
                             wagain, sm, sa, si, sv, sc, sagain, mlast >>

munmapper(self) == M1(self) \/ M2(self) \/ M3(self) \/ M4(self) \/ M5(self)
                      \/ M6(self) \/ M7(self) \/ M8(self) \/ M9(self)
                      \/ MP2(self) \/ MP3(self) \/ MP4(self) \/ MP5(self)
                      \/ M10(self)

(* Allow infinite stuttering to prevent deadlock on termination. *)
Terminating == /\ \A self \in ProcSet: pc[self] = "Done"
               /\ UNCHANGED vars

Next == splitter
           \/ (\E self \in {<<"remap", n>> : n \in 0..(NR - 1)}: remap(self))
           \/ (\E self \in {<<"walker", n>> : n \in 0..(NW - 1)}: walker(self))
           \/ (\E self \in (IF FORK THEN {<<"forker", 0>>} ELSE {}): forker(self))
           \/ (\E self \in (IF UNMAP THEN {<<"munmapper", 0>>} ELSE {}): munmapper(self))
           \/ Terminating

Spec == Init /\ [][Next]_vars

Termination == <>(\A self \in ProcSet: pc[self] = "Done")

\* END TRANSLATION TLA-81ff3bc0fbcf8dbed4636ef47c415d5e
-----------------------------------------------------------------------------
(* For "VIEW View" in the .cfg: states that differ only in a local that is   *)
(* not read again before it is written count once.                           *)
At(p, labels) == pc[p] \in labels
Freeing == {"WP1", "WP2", "WP3", "WP4", "WP5"}
SFreeing == {"SP1", "SP2", "SP3", "SP4", "SP5"}
Split == <<"splitter", 0>>
View == <<
  mapping, pidx, mapcount, plock, compound, ref, rd, wr, live, linked, pte, ptl, mm_rd, mm_wr, pc,
  [p \in DOMAIN ra |-> IF At(p, {"R1", "R2", "R3", "R4", "R14", "R15", "Done"}) THEN 0 ELSE ra[p]],
  [p \in DOMAIN wa |-> IF At(p, {"W1", "Done"}) THEN 0 ELSE wa[p]],
  [p \in DOMAIN wi |-> IF At(p, {"W15", "W16", "W17", "W18"}) THEN wi[p] ELSE 0],
  [p \in DOMAIN wv |-> IF At(p, {"W15", "W16", "W17"}) THEN wv[p] ELSE 0],
  [p \in DOMAIN wagain |-> At(p, Freeing) /\ wagain[p]],
  IF At(Split, {"S2", "S3", "S4", "S5", "S6", "S7"}) THEN sm ELSE 0,
  IF At(Split, {"S1", "S2", "Done"}) THEN 0 ELSE sa,
  IF At(Split, {"S11", "S12", "S13", "S14"}) THEN <<si, sv>> ELSE <<0, 0>>,
  IF At(Split, {"S11", "S12", "S13", "S14", "S15"}) THEN sc ELSE 0,
  At(Split, SFreeing) /\ sagain,
  [p \in DOMAIN mlast |-> At(p, {"M8"}) /\ mlast[p]] >>
=============================================================================
