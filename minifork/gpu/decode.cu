// The decode loop of many rollouts in one launch: embed, all layers, logits, policy, draw, DFA step, next token.
// Only counts leave the chip, and traces on request. docs/kernel.md explains the data flow and the numbers.
//
// A block owns a tile of ROWS rows and a range of the work, rollouts numbered problem * n + rollout. A row that
// ends takes the next rollout. Rows of one tile may be at different steps of different problems: each has its own
// prompt, suffix and state. Everything a rollout does depends on (seed, problem, rollout, step) and its own row's
// arithmetic, so results do not depend on which row runs it.
//
// The same source is compiled twice: by NVRTC or nvcc for the GPU, and by a C++ compiler as its *host twin*, which
// tests run without a GPU. Code between two barriers is a phase: a function of the thread's number, which the
// host calls for all threads one after the other, in any order. Warp phases use tensor cores (mma.sync) and hold
// registers of all 32 lanes in slot arrays on the host, where the mma is emulated fragment by fragment.
//
// Compile-time: WIDTH HEADS LAYERS VOCAB PROMPT STEPS (the model and its task), ROWS, BF16 (0: all fp32); on the GPU also BLOCKS_PER_SM.

#ifdef __CUDACC__
#define FN __device__ __forceinline__
#define FN_MEMBER __device__
#define PHASE(call) { const int tid = opaque(threadIdx.x); call; } __syncthreads();
#define WARPS(call) { const int warp = opaque(threadIdx.x) / 32; call; } __syncthreads();
#define ANY(test) __syncthreads_or(test(tile, threadIdx.x))
#define FOR_LANES for (int slot = 0, lane = threadIdx.x % 32; slot < 1; ++slot)
#define SLOTS 1
#define ROLLED _Pragma("unroll 1")
#define BY_TWO _Pragma("unroll 2")
#define UNROLLED _Pragma("unroll")
#else
#include <cmath>
#include <cstring>
#define FN static inline
#define FN_MEMBER
#define __restrict__
#define PHASE(call) for (int i_ = 0; i_ < THREADS; ++i_) { const int tid = order[i_]; call; }
#define WARPS(call) for (int i_ = 0; i_ < THREADS; ++i_) if (order[i_] % 32 == 0) { const int warp = order[i_] / 32; call; }
#define ANY(test) any_thread(tile, test)
#define FOR_LANES for (int slot = 0, lane = 0; slot < 32; ++slot, ++lane)
#define SLOTS 32
#define ROLLED
#define BY_TWO
#define UNROLLED
#endif

// The compiler cannot see through this. It computes values that depend on the number where they are used, so they hold
// no registers in between.
FN int opaque(int number) {
#ifdef __CUDACC__
    asm volatile("" : "+r"(number));
#endif
    return number;
}

#define FOR_SLOTS for (int slot = 0; slot < SLOTS; ++slot)

typedef unsigned u32;
typedef unsigned long long u64;

#if BF16
typedef unsigned short real;  // bfloat16 bits
#else
typedef float real;
#endif

constexpr int THREADS = 256;
constexpr int SIZE = WIDTH / HEADS;            // width of a head
constexpr int OUT = (VOCAB + 7) / 8 * 8;       // logits, padded to whole mma tiles
constexpr int STRIDE = WIDTH + 8;              // between rows in shared memory; avoids bank conflicts of mma accesses
constexpr int PER_ROW = THREADS / ROWS;        // threads that write a row together
constexpr int PARTS = 4;                       // partial sums of a row; their number does not depend on ROWS, so bits do not
constexpr int SPARE = THREADS / (ROWS * HEADS) > 0 ? THREADS / (ROWS * HEADS) : 1;
constexpr int PART = SIZE / SPARE > 8 ? SIZE / SPARE : 8;  // outputs of a head that one thread computes
constexpr int MATRIX = WIDTH * WIDTH;          // every weight is cut into WIDTH x WIDTH matrices
constexpr int LAYER = 12 * MATRIX;             // q k v out, then four times (up, down)
constexpr int MOST_STEPS = 4;                  // of a policy

enum Status { FREE, DUE, RUNNING, IDLE };      // needs a rollout; has logits to draw from; has a token to decode; no work is left
enum Step { TEMPERATURE, TOP_K, TOP_P, MIN_P };

struct Args {
    const float* logits;        // [B, VOCAB], of the first generated token
    const real* prompt;         // [B, LAYERS, 2, PROMPT, WIDTH], keys and values
    const real* weights;        // packed by minifork/gpu/kernel.py: LAYERS * LAYER, then the head [OUT, WIDTH]
    const float* token;         // [VOCAB, WIDTH], embeddings
    const float* position;      // [STEPS, WIDTH], embeddings of the positions after the prompt
    const unsigned short* dfa;  // [B, states, VOCAB]; the last `outcomes` states end a trace
    const int* forced;          // [B, forced_len], tokens that every trace begins with
    const u32* ids;             // [B], global problem numbers, part of the key of every draw
    const int* given;           // score mode: [B, n, STEPS], tokens to follow instead of drawing, -1 past the end
    real* suffix;               // scratch [blocks, LAYERS, 2, ROWS, STEPS, WIDTH]
    u64* totals;                // [2, B, outcomes], added to: traces that end in each outcome, and their tokens
    int* tokens;                // with traces: [B, n, STEPS], as are the next two
    float* gap;                 // logit of the token under the policy, less the largest one
    float* total;               // sum over tokens of exp(logit - largest)
    int* outcome;               // with traces: [B, n]
    u32* bad;                   // the smallest problem with logits that are not finite; unsigned -1 if none
    long long problems, n;      // n rollouts of every problem
    int states, outcomes, forced_len, policy_steps;
    int step[MOST_STEPS];
    float value[MOST_STEPS];
    u32 seed_lo, seed_hi;
};

constexpr int STREAM = OUT > STRIDE ? OUT : STRIDE;

struct Tile {                   // all of a block's shared memory
    float x[ROWS * STREAM];     // the residual stream [ROWS, STRIDE]; between forwards, logits [ROWS, OUT]
    alignas(16) real a[ROWS * STRIDE];  // what a matrix multiplies
    alignas(16) real b[ROWS * STRIDE];  // queries, then a quarter of the hidden layer
    float sum[ROWS * PARTS], square[ROWS * PARTS], top[ROWS], mass[ROWS];
    int status[ROWS], problem[ROWS], state[ROWS], length[ROWS], chosen[ROWS];
    long long work[ROWS], next, end;
    long long suffix;           // where this block's scratch begins in args.suffix

    FN_MEMBER unsigned char* keep() { return (unsigned char*)a; }  // [ROWS, OUT], in the memory of a and b: whether a policy step keeps a token
};

// arithmetic, the same on both machines

FN float float_of(u32 bits) {
#ifdef __CUDACC__
    return __uint_as_float(bits);
#else
    float x;
    memcpy(&x, &bits, 4);
    return x;
#endif
}

// e^x for x <= 88 within 2 ulp; 0 below -87 (and for -inf), NaN for NaN. Cody-Waite reduction, then Taylor to x^7.
FN float exponential(float x) {
    if (x < -87.0f) return 0.0f;
    float k = rintf(x * 1.44269504f);
    float r = fmaf(k, -0.693145752f, x);
    r = fmaf(k, -1.42860677e-6f, r);
    float p = 1.0f / 5040;
    p = fmaf(p, r, 1.0f / 720);
    p = fmaf(p, r, 1.0f / 120);
    p = fmaf(p, r, 1.0f / 24);
    p = fmaf(p, r, 1.0f / 6);
    p = fmaf(p, r, 0.5f);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    return x == x ? p * float_of((u32)((int)k + 127) << 23) : x;
}

// The exponential of attention. In bf16 an approximation is enough, because its operands are rounded more coarsely.
FN float quick_exponential(float x) {
#if BF16 && defined(__CUDACC__)
    return __expf(x);
#else
    return exponential(x);
#endif
}

FN float gelu(float x) {
    float u = 0.7978845608f * fmaf(0.044715f * x * x, x, x);
#if BF16 && defined(__CUDACC__)
    float t;
    asm("tanh.approx.f32 %0, %1;" : "=f"(t) : "f"(u));
#else
    float c = u < -15.0f ? -15.0f : u > 15.0f ? 15.0f : u;
    float t = 1.0f - 2.0f / (exponential(2.0f * c) + 1.0f);
#endif
    return 0.5f * x * (1.0f + t);
}

#if BF16
#ifndef __CUDACC__
FN u32 rounded(float x) {  // one bfloat16, rounded as by the instruction below
    u32 bits;
    memcpy(&bits, &x, 4);
    return x == x ? (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 : 0x7FFF;
}
#endif
FN u32 pair(float low, float high) {  // two bfloat16, rounded to nearest even; any NaN becomes 0x7FFF
#ifdef __CUDACC__
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
#else
    return rounded(high) << 16 | rounded(low);
#endif
}
FN void store2(real* to, float low, float high) { *(u32*)to = pair(low, high); }
FN void load8(const real* from, float* x) {
    struct alignas(16) Eight { u32 word[4]; };
    const Eight eight = *(const Eight*)from;
    for (int i = 0; i < 4; ++i) {
        x[2 * i] = float_of(eight.word[i] << 16);
        x[2 * i + 1] = float_of(eight.word[i] & 0xFFFF0000u);
    }
}
#else
FN void store2(real* to, float low, float high) { to[0] = low, to[1] = high; }
FN void load8(const real* from, float* x) {
    struct alignas(16) Four { float value[4]; };
    const Four low = ((const Four*)from)[0], high = ((const Four*)from)[1];
    for (int i = 0; i < 4; ++i) x[i] = low.value[i], x[4 + i] = high.value[i];
}
#endif

// Philox4x32-10 (Salmon et al. 2011); word 0 of the output, as fp32 in [0, 1)
FN float uniform(u32 rollout, u32 step, u32 problem, u32 k0, u32 k1) {
    u32 c0 = rollout, c1 = step, c2 = problem, c3 = 0;  // purpose 0: a sampling draw
    for (int round = 0; round < 10; ++round) {
        u64 p0 = (u64)c0 * 0xD2511F53u, p1 = (u64)c2 * 0xCD9E8D57u;
        u32 n0 = (u32)(p1 >> 32) ^ c1 ^ k0, n2 = (u32)(p0 >> 32) ^ c3 ^ k1;
        c0 = n0, c1 = (u32)p1, c2 = n2, c3 = (u32)p0;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    return (float)(c0 >> 8) * 5.9604644775390625e-8f;
}

#ifdef __CUDACC__
FN void add(u64* to, u64 amount) { atomicAdd(to, amount); }
FN long long take(long long* next) { return (long long)atomicAdd((u64*)next, 1ull); }
FN void least(u32* to, u32 value) { atomicMin(to, value); }
#else
FN void add(u64* to, u64 amount) { *to += amount; }
FN long long take(long long* next) { return (*next)++; }
FN void least(u32* to, u32 value) { if (value < *to) *to = value; }
#endif

// matrix products: store(row, column, left, right) takes two neighbouring columns of the product of a, [ROWS, WIDTH],
// and w

#if BF16
// One warp's share of the columns. w is packed in fragment order: for each tile of 8 columns and each 32 inputs, 16
// bytes a lane.
template <class Store>
FN void multiply(const real* a, const real* __restrict__ w, int columns, int warp, Store store) {
    constexpr int M = ROWS / 16, K = WIDTH / 32, MOST = WIDTH / 64;  // column tiles a warp takes at once
    struct alignas(16) Fragment { u32 word[4]; };
    const Fragment* packed = (const Fragment*)w;
    const int tiles = columns / 8;
    ROLLED
    for (int from = warp * MOST; from < tiles; from += THREADS / 32 * MOST) {
        float c[SLOTS][MOST][M][4];
        FOR_SLOTS for (int t = 0; t < MOST; ++t)
            for (int m = 0; m < M; ++m)
                for (int i = 0; i < 4; ++i) c[slot][t][m][i] = 0;
        ROLLED
        for (int k = 0; k < K; ++k) {
            Fragment b[SLOTS][MOST];
            FOR_LANES for (int t = 0; t < MOST; ++t)
                if (from + t < tiles) b[slot][t] = packed[((from + t) * K + k) * 32 + lane];
            for (int half = 0; half < 2; ++half)
                for (int m = 0; m < M; ++m) {
                    u32 f[SLOTS][4];
                    FOR_LANES {
                        const real* at = a + (16 * m + lane / 4) * STRIDE + 32 * k + 16 * half + lane % 4 * 2;
                        f[slot][0] = *(const u32*)at;
                        f[slot][1] = *(const u32*)(at + 8 * STRIDE);
                        f[slot][2] = *(const u32*)(at + 8);
                        f[slot][3] = *(const u32*)(at + 8 * STRIDE + 8);
                    }
                    for (int t = 0; t < MOST; ++t)
                        if (from + t < tiles) {
#ifdef __CUDACC__
                            float* d = c[0][t][m];
                            asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                                "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                                : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                                : "r"(f[0][0]), "r"(f[0][1]), "r"(f[0][2]), "r"(f[0][3]),
                                  "r"(b[0][t].word[2 * half]), "r"(b[0][t].word[2 * half + 1]));
#else
                            for (int row = 0; row < 16; ++row)
                                for (int column = 0; column < 8; ++column) {
                                    float& d = c[row % 8 * 4 + column / 2][t][m][row / 8 * 2 + column % 2];
                                    for (int i = 0; i < 16; ++i) {
                                        u32 left = f[row % 8 * 4 + i % 8 / 2][i / 8 * 2 + row / 8];
                                        u32 right = b[column * 4 + i % 8 / 2][t].word[2 * half + i / 8];
                                        float l = float_of(i % 2 ? left & 0xFFFF0000u : left << 16);
                                        d = fmaf(l, float_of(i % 2 ? right & 0xFFFF0000u : right << 16), d);
                                    }
                                }
#endif
                        }
                }
        }
        FOR_LANES for (int t = 0; t < MOST; ++t)
            if (from + t < tiles)
                for (int m = 0; m < M; ++m) {
                    const int row = 16 * m + lane / 4, column = 8 * (from + t) + lane % 4 * 2;
                    store(row, column, c[slot][t][m][0], c[slot][t][m][1]);
                    store(row + 8, column, c[slot][t][m][2], c[slot][t][m][3]);
                }
    }
}
#define PRODUCT WARPS
#define WORKER warp
#else
// One thread's share: two columns of eight rows at a time. w is [WIDTH, columns].
template <class Store>
FN void multiply(const real* a, const real* __restrict__ w, int columns, int tid, Store store) {
    ROLLED
    for (int item = tid; item < columns / 2 * (ROWS / 8); item += THREADS) {
        const int column = item % (columns / 2) * 2, row = item / (columns / 2) * 8;
        float left[8], right[8];
        for (int r = 0; r < 8; ++r) left[r] = right[r] = 0;
        ROLLED
        for (int k = 0; k < WIDTH; ++k) {
            const float l = w[k * columns + column], h = w[k * columns + column + 1];
            for (int r = 0; r < 8; ++r) {
                const float x = a[(row + r) * STRIDE + k];
                left[r] = fmaf(x, l, left[r]), right[r] = fmaf(x, h, right[r]);
            }
        }
        for (int r = 0; r < 8; ++r) store(row + r, column, left[r], right[r]);
    }
}
#define PRODUCT PHASE
#define WORKER tid
#endif

// phases of the model

// The tile holds an index instead of a pointer: of a pointer in shared memory the compiler would not know that it points
// to global memory.
FN real* suffix_of(const Tile& tile, const Args& args, int layer, int value, int row) {
    return args.suffix + tile.suffix + (((layer * 2 + value) * ROWS + row) * (long long)STEPS) * WIDTH;
}

FN void embed(Tile& tile, const Args& args, int tid) {
    const int row = tid / PER_ROW;
    const float* token = args.token + tile.chosen[row] * WIDTH;
    const float* position = args.position + (tile.length[row] - 1) * WIDTH;
    for (int c = tid % PER_ROW; c < WIDTH; c += PER_ROW) tile.x[row * STRIDE + c] = token[c] + position[c];
}

FN void norm_sums(Tile& tile, int tid) {
    if (tid >= ROWS * PARTS) return;
    const float* x = tile.x + tid / PARTS * STRIDE;
    float sum = 0, square = 0;
    for (int c = tid % PARTS; c < WIDTH; c += PARTS) sum += x[c], square = fmaf(x[c], x[c], square);
    tile.sum[tid] = sum, tile.square[tid] = square;
}

FN void norm(Tile& tile, int tid) {
    const int row = tid / PER_ROW;
    float sum = 0, square = 0;
    for (int part = row * PARTS; part < (row + 1) * PARTS; ++part) sum += tile.sum[part], square += tile.square[part];
    const float mean = sum / WIDTH, scale = 1.0f / sqrtf(square / WIDTH - mean * mean + 1e-5f);
    const float* x = tile.x + row * STRIDE;
    for (int c = tid % PER_ROW * 2; c < WIDTH; c += PER_ROW * 2)
        store2(tile.a + row * STRIDE + c, (x[c] - mean) * scale, (x[c + 1] - mean) * scale);
}

FN void queries_keys_values(Tile& tile, const Args& args, const real* w, int layer, int worker) {
    real* b = tile.b;
    multiply(tile.a, w, WIDTH, worker, [&](int row, int c, float l, float r) { store2(b + row * STRIDE + c, l, r); });
    for (int value = 0; value < 2; ++value)
        multiply(tile.a, w + (1 + value) * MATRIX, WIDTH, worker, [&](int row, int c, float l, float r) {
            store2(suffix_of(tile, args, layer, value, row) + (tile.length[row] - 1) * WIDTH + c, l, r);
        });
}

// Softmax attention of one query over its prompt and its suffix, one key after the other.
FN void attend(Tile& tile, const Args& args, int layer, int tid) {
    ROLLED
    for (int item = tid; item < ROWS * HEADS * (SIZE / PART); item += THREADS) {
        const int row = item % ROWS, part = item / ROWS % (SIZE / PART) * PART, head = item / (ROWS * (SIZE / PART)) * SIZE;
        const real* prompt = args.prompt + ((long long)tile.problem[row] * LAYERS + layer) * 2 * PROMPT * WIDTH + head;
        const real* suffix = suffix_of(tile, args, layer, 0, row) + head;
        float top = -1e30f, sum = 0, out[PART];
        for (int c = 0; c < PART; ++c) out[c] = 0;
        const int keys = PROMPT + tile.length[row];
        ROLLED
        for (int t = 0; t < keys; ++t) {
            const real* key = t < PROMPT ? prompt + t * WIDTH : suffix + (t - PROMPT) * WIDTH;
            const real* value = key + (t < PROMPT ? PROMPT : ROWS * STEPS) * WIDTH + part;
            float score = 0;
            BY_TWO  // more loads at once, or the query kept between keys, would spill registers
            for (int c = 0; c < SIZE; c += 8) {
                float x[8], k[8];
                load8(tile.b + row * STRIDE + head + c, x), load8(key + c, k);
                for (int i = 0; i < 8; ++i) score = fmaf(x[i], k[i], score);
            }
            if (score > top) {
                const float shrink = quick_exponential(top - score);
                for (int c = 0; c < PART; ++c) out[c] *= shrink;
                top = score, sum *= shrink;
            }
            const float weight = quick_exponential(score - top);
            sum += weight;
            UNROLLED
            for (int c = 0; c < PART; c += 8) {
                float v[8];
                load8(value + c, v);
                for (int i = 0; i < 8; ++i) out[c + i] = fmaf(weight, v[i], out[c + i]);
            }
        }
        const float scale = 1.0f / sum;
        real* to = tile.a + row * STRIDE + head + part;
        for (int c = 0; c < PART; c += 2) store2(to + c, out[c] * scale, out[c + 1] * scale);
    }
}

FN void add_to_stream(Tile& tile, const real* from, const real* w, int worker) {
    float* x = tile.x;
    multiply(from, w, WIDTH, worker, [&](int row, int c, float l, float r) {
        x[row * STRIDE + c] += l, x[row * STRIDE + c + 1] += r;
    });
}

FN void hidden(Tile& tile, const real* w, int worker) {
    real* b = tile.b;
    multiply(tile.a, w, WIDTH, worker, [&](int row, int c, float l, float r) {
        store2(b + row * STRIDE + c, gelu(l), gelu(r));
    });
}

FN void logits(Tile& tile, const real* w, int worker) {
    float* x = tile.x;
    multiply(tile.a, w, OUT, worker, [&](int row, int c, float l, float r) { x[row * OUT + c] = l, x[row * OUT + c + 1] = r; });
}

// phases of sampling

FN void begin(Tile& tile, const Args& args, int block, int blocks, int tid) {
    const long long work = args.problems * args.n;
    if (tid == 0) tile.next = work * block / blocks, tile.end = work * (block + 1) / blocks;
    if (tid == 0) tile.suffix = (long long)block * LAYERS * 2 * ROWS * STEPS * WIDTH;
    if (tid < ROWS) {  // rows without work compute with these values, and their results are dropped
        tile.status[tid] = FREE, tile.problem[tid] = 0, tile.length[tid] = 1, tile.chosen[tid] = 0;
    }
}

FN void claim(Tile& tile, const Args& args, int tid) {
    if (tid >= ROWS || tile.status[tid] != FREE) return;
    const long long work = take(&tile.next);
    if (work >= tile.end) {
        tile.status[tid] = IDLE, tile.length[tid] = 1;
        return;
    }
    tile.work[tid] = work, tile.problem[tid] = (int)(work / args.n);
    tile.state[tid] = tile.length[tid] = 0, tile.status[tid] = DUE;
}

FN void first_logits(Tile& tile, const Args& args, int tid) {
    for (int item = tid; item < ROWS * VOCAB; item += THREADS) {
        const int row = item / VOCAB, v = item % VOCAB;
        if (tile.status[row] == DUE) tile.x[row * OUT + v] = args.logits[(long long)tile.problem[row] * VOCAB + v];
    }
}

FN void next_logits_are_due(Tile& tile, int tid) {
    if (tid < ROWS && tile.status[tid] == RUNNING) tile.status[tid] = DUE;
}

FN void policy_sums(Tile& tile, int tid) {
    if (tid >= ROWS || tile.status[tid] != DUE) return;
    const float* l = tile.x + tid * OUT;
    float top = l[0], mass = 0;
    ROLLED
    for (int v = 1; v < VOCAB; ++v) top = l[v] > top ? l[v] : top;
    ROLLED
    for (int v = 0; v < VOCAB; ++v) mass += exponential(l[v] - top);
    tile.top[tid] = top, tile.mass[tid] = mass;
}

// Whether a token stays. Where tokens are ranked, higher logits come first, equal ones by lower id.
FN bool kept(const float* l, float top, float mass, int v, int step, float value) {
    if (step == MIN_P) return exponential(l[v] - top) >= value;
    int rank = 0;
    float before = 0;
    ROLLED
    for (int other = 0; other < VOCAB; ++other)
        if (l[other] > l[v] || (l[other] == l[v] && other < v)) {
            ++rank;
            if (step == TOP_P) before += exponential(l[other] - top);
        }
    return step == TOP_K ? (float)rank < value : rank == 0 || before / mass < value;
}

FN void policy_judge(Tile& tile, int step, float value, int tid) {
    for (int item = tid; item < ROWS * VOCAB; item += THREADS) {
        const int row = item / VOCAB, v = item % VOCAB;
        if (tile.status[row] == DUE)
            tile.keep()[row * OUT + v] = kept(tile.x + row * OUT, tile.top[row], tile.mass[row], v, step, value);
    }
}

FN void policy_apply(Tile& tile, int step, float value, int tid) {
    for (int item = tid; item < ROWS * VOCAB; item += THREADS) {
        const int row = item / VOCAB, v = item % VOCAB;
        if (tile.status[row] != DUE) continue;
        float& l = tile.x[row * OUT + v];
        if (step == TEMPERATURE) l /= value;
        else if (!tile.keep()[row * OUT + v]) l = float_of(0xFF800000u);
    }
}

// Draw by inverse CDF: the first token whose cumulative weight exceeds u times the sum, else the last of positive weight.
FN int draw(const float* l, float top, float total, float u) {
    float cumulative = 0;
    int last = 0;
    ROLLED
    for (int v = 0; v < VOCAB; ++v) {
        const float weight = exponential(l[v] - top);
        cumulative += weight;
        if (weight > 0) last = v;
        if (cumulative > u * total) return v;
    }
    return last;
}

FN void choose(Tile& tile, const Args& args, int tid) {
    if (tid >= ROWS || tile.status[tid] != DUE) return;
    const float* l = tile.x + tid * OUT;
    const int problem = tile.problem[tid], at = tile.length[tid];
    const long long work = tile.work[tid];
    float top = l[0], total = 0;
    ROLLED
    for (int v = 1; v < VOCAB; ++v) top = l[v] > top ? l[v] : top;
    ROLLED
    for (int v = 0; v < VOCAB; ++v) total += exponential(l[v] - top);
    if (!(total >= 1.0f && total <= (float)VOCAB)) least(args.bad, (u32)problem);

    int token;
    const bool forced = at < args.forced_len;
    if (forced) token = args.forced[problem * args.forced_len + at];
    else if (args.given) token = args.given[work * STEPS + at];
    else {
        const u32 rollout = (u32)(work % args.n);
        token = draw(l, top, total, uniform(rollout, (u32)at, args.ids[problem], args.seed_lo, args.seed_hi));
    }
    if (args.tokens && token >= 0) {  // a given trace without tokens leaves its outputs as they are
        args.tokens[work * STEPS + at] = token;
        args.gap[work * STEPS + at] = forced ? 0.0f : l[token] - top;
        args.total[work * STEPS + at] = forced ? 1.0f : total;
    }
    tile.chosen[tid] = token < 0 ? 0 : token, tile.length[tid] = at + 1;
    int outcome = -1;
    if (args.given) {  // follow the given tokens to their end, whatever the automaton says
        if (at + 1 == STEPS || args.given[work * STEPS + at + 1] < 0) outcome = 0;
    } else {
        const int state = args.dfa[((long long)problem * args.states + tile.state[tid]) * VOCAB + token];
        tile.state[tid] = state;
        if (state >= args.states - args.outcomes) outcome = state - (args.states - args.outcomes);
        else if (at + 1 == STEPS) outcome = args.outcomes - 1;
    }
    if (outcome < 0) {
        tile.status[tid] = RUNNING;
        return;
    }
    tile.status[tid] = FREE;
    add(args.totals + problem * args.outcomes + outcome, 1);
    add(args.totals + (args.problems + problem) * args.outcomes + outcome, (u64)(at + 1));
    if (args.outcome) args.outcome[work] = outcome;
}

FN int is_due(Tile& tile, int tid) { return tid < ROWS && tile.status[tid] == DUE; }
FN int is_running(Tile& tile, int tid) { return tid < ROWS && tile.status[tid] == RUNNING; }

#ifndef __CUDACC__
static const int* order;  // the order in which the host runs the threads of a phase
static int any_thread(Tile& tile, int (*test)(Tile&, int)) {
    int any = 0;
    for (int i = 0; i < THREADS; ++i) any |= test(tile, order[i]);
    return any;
}
#endif

FN void sample(Tile& tile, const Args& args) {
    for (int i = 0; i < args.policy_steps; ++i) {
        const int step = args.step[i];
        const float value = args.value[i];
        PHASE(policy_sums(tile, tid))
        PHASE(policy_judge(tile, step, value, tid))
        PHASE(policy_apply(tile, step, value, tid))
    }
    PHASE(choose(tile, args, tid))
}

FN void forward(Tile& tile, const Args& args) {
    const real* w = args.weights;
    PHASE(embed(tile, args, tid))
    ROLLED
    for (int layer = 0; layer < LAYERS; ++layer, w += LAYER) {
        PHASE(norm_sums(tile, tid))
        PHASE(norm(tile, tid))
        PRODUCT(queries_keys_values(tile, args, w, layer, WORKER))
        PHASE(attend(tile, args, layer, tid))
        PRODUCT(add_to_stream(tile, tile.a, w + 3 * MATRIX, WORKER))
        PHASE(norm_sums(tile, tid))
        PHASE(norm(tile, tid))
        ROLLED
        for (int quarter = 0; quarter < 4; ++quarter) {
            PRODUCT(hidden(tile, w + (4 + 2 * quarter) * MATRIX, WORKER))
            PRODUCT(add_to_stream(tile, tile.b, w + (5 + 2 * quarter) * MATRIX, WORKER))
        }
    }
    PHASE(norm_sums(tile, tid))
    PHASE(norm(tile, tid))
    PRODUCT(logits(tile, w, WORKER))
    PHASE(next_logits_are_due(tile, tid))
}

FN void run(Tile& tile, const Args& args, int block, int blocks) {
    static_assert(SIZE % 8 == 0 && WIDTH % 64 == 0 && ROWS % 16 == 0 && THREADS % ROWS == 0, "shapes must divide");
    static_assert(ROWS * PARTS <= THREADS, "too many rows");
    static_assert(ROWS * OUT <= (int)(sizeof(Tile::a) + sizeof(Tile::b)), "too many tokens for keep()");
    PHASE(begin(tile, args, block, blocks, tid))
    for (;;) {
        for (;;) {  // rows that ended start the next rollout, until all run or no work is left
            PHASE(claim(tile, args, tid))
            if (!ANY(is_due)) break;
            PHASE(first_logits(tile, args, tid))
            sample(tile, args);
        }
        if (!ANY(is_running)) break;
        forward(tile, args);
        sample(tile, args);
    }
}

#ifdef __CUDACC__
extern "C" __device__ const int tile_bytes = sizeof(Tile);
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM) decode(const Args args) {
    extern __shared__ __align__(16) char memory[];
    run(*(Tile*)memory, args, blockIdx.x, gridDim.x);
}
#else
extern "C" const int tile_bytes = sizeof(Tile);
extern "C" void decode(const Args* args, int blocks, const int* thread_order) {
    order = thread_order;
    for (int block = 0; block < blocks; ++block) {
        Tile* tile = new Tile;
        memset((void*)tile, 0xFF, sizeof(Tile));  // poison, so that reads of unwritten memory show
        run(*tile, *args, block, blocks);
        delete tile;
    }
}
#endif
