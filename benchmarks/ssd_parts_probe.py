"""Probe: what single passes of a chunked scan cost."""
import sys, torch, time
torch.manual_seed(0)
dev = "cuda"
B, L, H, P, N = 8, 2048, 24, 64, 128
bf = torch.bfloat16
def t(f, n=20):
    try:
        for _ in range(3): f()
        torch.cuda.synchronize()
        g = torch.cuda.CUDAGraph()
        with torch.cuda.graph(g):
            f()
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        g.replay(); torch.cuda.synchronize()
        a.record()
        for _ in range(n): g.replay()
        b.record(); torch.cuda.synchronize()
        return a.elapsed_time(b) / n * 1e3
    except Exception as e:
        torch.cuda.synchronize()
        return f"{type(e).__name__}: {str(e)[:150]}"
def show(name, f):
    r = t(f)
    print(f"{name:60s} {r if isinstance(r,str) else round(r,1)}", flush=True)
for Q in map(int, sys.argv[1:] or (64, 128, 256)):
    K = L // Q
    print("== Q", Q)
    xBC = torch.randn(B, L, H * P + 2 * N, device=dev, dtype=bf)
    x = xBC[..., : H * P]
    xk = x.unflatten(1, (K, Q)).unflatten(-1, (H, P)).transpose(0, 1)  # k b q h p
    Bk = xBC[..., H * P : H * P + N].unflatten(1, (K, Q)).transpose(0, 1).contiguous()
    Ck = xBC[..., H * P + N :].unflatten(1, (K, Q)).transpose(0, 1).contiguous()
    w32 = torch.rand(K, B, Q, H, 1, device=dev); wb = w32.to(bf)
    wT32 = torch.rand(K, B, H, Q, device=dev).transpose(2, 3).unsqueeze(-1)
    xh = torch.empty(K, B, H, Q, P, device=dev, dtype=bf)
    xh32 = torch.empty(K, B, H, Q, P, device=dev)
    u = torch.empty(K, B, Q, H, P, device=dev, dtype=bf)
    show("x to head-major bf16 copy (out k b h)", lambda: xh.copy_(xk.transpose(2, 3)))
    show("x to head-major fp32 copy", lambda: xh32.copy_(xk.transpose(2, 3)))
    xbh = torch.empty(B, H, K, Q, P, device=dev, dtype=bf)
    show("x to b h k q p bf16", lambda: xbh.copy_(xk.permute(1, 3, 0, 2, 4)))
    show("u = x*w bf16, bf16 w", lambda: torch.mul(xk, wb, out=u))
    show("u = x*w fp32 w -> bf16 out", lambda: torch.mul(xk, w32, out=u))
    show("u = x*w fp32 wT -> bf16 out", lambda: torch.mul(xk, wT32, out=u))
    u32 = torch.empty(K, B, Q, H, P, device=dev)
    show("u = x*w fp32 -> fp32 out", lambda: torch.mul(xk, w32, out=u32))
    uf = u.view(K * B, Q, H * P)
    S32 = torch.empty(K * B, H * P, N, device=dev)
    Bf = Bk.view(K * B, Q, N); Cf = Ck.view(K * B, Q, N)
    show("S = u^T B -> fp32 (out_dtype)", lambda: torch.bmm(uf.transpose(1, 2), Bf, out_dtype=torch.float32))
    show("S = u^T B -> bf16", lambda: torch.bmm(uf.transpose(1, 2), Bf))
    show("S = fp32 x fp32", lambda: torch.bmm(u32.view(K * B, Q, H * P).transpose(1, 2), Bf.float()))
    Sb = S32.to(bf)
    G32 = torch.rand(B * H, K, K, device=dev); Gb = G32.to(bf)
    def passing(S, G, dt):
        o = torch.empty_like(S)
        torch.bmm(G, S.view(K, B * H, P * N).transpose(0, 1), out=o.view(K, B * H, P * N).transpose(0, 1))
    show("pass fp32", lambda: passing(S32, G32, None))
    show("pass bf16", lambda: passing(Sb, Gb, None))
    show("pass bf16 -> new fp32 out_dtype", lambda: torch.bmm(Gb, Sb.view(K, B * H, P * N).transpose(0, 1), out_dtype=torch.float32))
    show("cast S fp32 -> bf16", lambda: S32.to(bf))
    show("read = C S^T -> bf16", lambda: torch.bmm(Cf, Sb.transpose(1, 2)))
    show("read = C S^T -> fp32", lambda: torch.bmm(Cf, Sb.transpose(1, 2), out_dtype=torch.float32))
    CB = torch.bmm(Cf, Bf.transpose(1, 2), out_dtype=torch.float32).view(K, B, 1, Q, Q)
    show("CB fp32 + tril", lambda: torch.bmm(Cf, Bf.transpose(1, 2), out_dtype=torch.float32).tril_())
    r32 = torch.rand(K, B, H, Q, 1, device=dev).sort(-2, descending=True).values; s32 = r32.transpose(3, 4).contiguous()
    r64, s64 = r32.double(), s32.double()
    E = torch.empty(K, B, H, Q, Q, device=dev); Mb = torch.empty(K, B, H, Q, Q, device=dev, dtype=bf)
    show("exponents sub fp64 -> fp32", lambda: torch.sub(r64, s64, out=E))
    show("exponents sub fp32 -> fp32", lambda: torch.sub(r32, s32, out=E))
    Eb = torch.empty(K, B, H, Q, Q, device=dev, dtype=bf)
    show("exponents sub fp32 -> bf16", lambda: torch.sub(r32, s32, out=Eb))
    Eh = torch.empty(K, B, H, Q, Q, device=dev, dtype=torch.float16)
    show("exponents sub fp32 -> fp16", lambda: torch.sub(r32, s32, out=Eh))
    elu = torch.ops.aten.elu_backward.grad_input
    show("elu fp32 CB, E32 -> fp32 inplace", lambda: elu(CB, 1, 1, 1, False, E, grad_input=E))
    show("elu fp32 CB, E32 -> bf16", lambda: elu(CB, 1, 1, 1, False, E, grad_input=Mb))
    CBb = CB.to(bf)
    show("elu bf16 CB, Eb -> bf16", lambda: elu(CBb, 1, 1, 1, False, Eb, grad_input=Mb))
    show("exp_ bf16", lambda: Eb.exp_())
    show("mul bf16 Eb*CBb", lambda: torch.mul(Eb, CBb, out=Mb))
    show("mul bf16 rows*cols -> bf16 (separable)", lambda: torch.mul(r32.to(bf), s32.to(bf), out=Mb))
    try:
        jit = torch.cuda.jiterator._create_jit_fn
        f32 = jit("template <typename T> T pairs(T cb, T r, T s) { return cb * exp(r - s > T(0) ? T(0) : r - s); }")
        show("jiterator fp32 3 inputs", lambda: f32(CB, r32, s32))
        fb = jit("""template <typename T> T pairs_b(T cb, T r, T r2, T r3, T s, T s2, T s3) {
            float d = (float(r) - float(s)) + ((float(r2) - float(s2)) + (float(r3) - float(s3)));
            return T(float(cb) * __expf(d > 0.f ? 0.f : d)); }""")
        rs = [r32.to(bf)] * 3; ss = [s32.to(bf)] * 3
        show("jiterator bf16 7 inputs", lambda: fb(CBb, *rs, *ss))
        mixed = f32(CBb, r32, s32)
        print("mixed jiterator dtype", mixed.dtype, mixed.shape)
        show("jiterator mixed bf16 cb, fp32 rows", lambda: f32(CBb, r32, s32))
        xt = xk.transpose(2, 3)
        scale = jit("template <typename T> T scaled(T x, T w) { return x * w; }")
        show("jiterator bf16 x*w", lambda: scale(xt, w32.to(bf).transpose(2, 3)))
        fb2 = jit("""template <typename T> T pairs_c(T cb, T r, T s) {
            return T(float(cb) * __expf(float(r) - float(s))); }""")
        show("jiterator bf16 3 inputs", lambda: fb2(CBb, rs[0], ss[0]))
    except Exception as e:
        print("jiterator", type(e).__name__, str(e)[:300])
    Mf = Mb.view(-1, Q, Q); xf = xh.view(-1, Q, P)
    show("inside = M x -> bf16", lambda: torch.bmm(Mf, xf))
    show("inside = M x -> fp32", lambda: torch.bmm(Mf, xf, out_dtype=torch.float32))
    show("inside^T = M^T x -> fp32", lambda: torch.bmm(Mf.transpose(1, 2), xf, out_dtype=torch.float32))
    show("pairs = x x^T -> fp32", lambda: torch.bmm(xf, xf.transpose(1, 2), out_dtype=torch.float32))
    show("pairs = x x^T -> bf16", lambda: torch.bmm(xf, xf.transpose(1, 2)))
    ins = torch.bmm(Mf, xf, out_dtype=torch.float32).view(K, B, H, Q, P); insb = ins.to(bf)
    rd = torch.bmm(Cf, Sb.transpose(1, 2), out_dtype=torch.float32).view(K, B, Q, H, P); rdb = rd.to(bf)
    out = torch.empty(B, L, H, P, device=dev, dtype=bf).unflatten(1, (K, Q)).transpose(0, 1)
    show("combine addcmul fp32,fp32 -> bf16 out copy", lambda: out.copy_(torch.addcmul(ins.transpose(2, 3), rd, w32)))
    def direct(a, b, w):
        torch.addcmul(a.transpose(2, 3), b, w, out=out)
    show("combine addcmul fp32,fp32,fp32 -> bf16 out", lambda: direct(ins, rd, w32))
    show("combine addcmul bf16,bf16,bf16 -> bf16 out", lambda: direct(insb, rdb, wb))
    show("combine addcmul fp32,bf16,f32 -> bf16 out", lambda: direct(ins, rdb, w32))
    show("combine addcmul bf16,bf16,f32 -> bf16 out", lambda: direct(insb, rdb, w32))
    show("pairs sum over heads fp32 (dCB)", lambda: E.sum(2))
    show("pairs sum over heads bf16 (dCB)", lambda: Mb.sum(2, dtype=torch.float32))
    show("pairs *= CB fp32", lambda: E.mul_(CB))
    show("pairs sum(-2) fp32", lambda: E.sum(-2))
    show("pairs sum(-1) fp32", lambda: E.sum(-1))
    show("pairs sum(-1) bf16->fp32", lambda: Mb.sum(-1, dtype=torch.float32))
    tri = torch.ones(Q, Q, device=dev).triu_(1)
    show("spanning mm fp32", lambda: torch.mm(E.view(-1, Q), tri))
    show("spanning mm bf16", lambda: torch.mm(Mb.view(-1, Q), tri.to(bf)))
    show("tril_ fp32", lambda: E.tril_())
    show("rowdot: (rd*rd).sum(-1) fp32", lambda: (rd * rd).sum(-1))
    show("rowdot: bf16 (rdb*rdb).sum(-1)", lambda: (rdb * rdb).sum(-1))
    show("rowdot: bmm 1xP Px1 bf16", lambda: torch.bmm(rdb.reshape(-1, 1, P), rdb.reshape(-1, P, 1)))
    show("rowdot: linalg.vecdot", lambda: torch.linalg.vecdot(rdb, rdb))
    show("rowdot: einsum", lambda: torch.einsum("kbqhp,kbqhp->kbqhq" if False else "kbqhp,kbqhp->kbqh", rdb, rdb))
    del E, Mb, Eb, Eh, S32, Sb, ins, insb, rd, rdb, u32, xh32
    torch.cuda.empty_cache()
