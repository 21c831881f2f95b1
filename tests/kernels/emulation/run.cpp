// Runs one kernel on a CPU: KERNEL_SOURCE is the file, KERNEL its entry.
#include <cstdio>

#include KERNEL_SOURCE

#undef threadIdx

Index blockIdx, blockDim, gridDim;
std::vector<Fibre> fibres;
std::vector<Group> warps;
Group block, first_threads, barriers[16];
int running;
static ucontext_t scheduler;
alignas(1024) uint4 memory[227 * 64];
char* shared_begin = reinterpret_cast<char*>(memory);
char* shared_end = shared_begin;

void give_way() { swapcontext(&fibres[running].context, &scheduler); }

static std::function<void()> body;
static void enter() {
    body();
    fibres[running].done = true;
    give_way();
}

using Any = void (*)(long long, long long, long long, long long, long long, long long, long long,
                     long long, long long, long long, long long, long long, long long, long long,
                     long long, long long, long long, long long, long long, long long, long long,
                     long long, long long, long long, long long, long long, long long, long long,
                     long long, long long, long long, long long, long long, long long, long long,
                     long long, long long, long long, long long, long long, long long, long long,
                     long long, long long, long long, long long, long long, long long, long long,
                     long long, long long, long long, long long, long long, long long, long long,
                     long long, long long, long long, long long, long long, long long, long long,
                     long long);

extern "C" void run(const long long* grid, const long long* block_size, long long shared_bytes,
                    const long long* a) {
    const long long width = block_size[0], threads = width * block_size[1];
    blockDim = {unsigned(width), unsigned(block_size[1]), 1};
    gridDim = {unsigned(grid[0]), unsigned(grid[1]), unsigned(grid[2])};
    shared_end = shared_begin + shared_bytes;
    const Any kernel = reinterpret_cast<Any>(&KERNEL);
    body = [=] {
        kernel(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12],
               a[13], a[14], a[15], a[16], a[17], a[18], a[19], a[20], a[21], a[22], a[23], a[24],
               a[25], a[26], a[27], a[28], a[29], a[30], a[31], a[32], a[33], a[34], a[35], a[36],
               a[37], a[38], a[39], a[40], a[41], a[42], a[43], a[44], a[45], a[46], a[47], a[48],
               a[49], a[50], a[51], a[52], a[53], a[54], a[55], a[56], a[57], a[58], a[59], a[60],
               a[61], a[62], a[63]);
    };
    fibres.resize(threads);
    unsigned random = 0;
    for (unsigned z = 0; z < gridDim.z; ++z)
        for (unsigned y = 0; y < gridDim.y; ++y)
            for (unsigned x = 0; x < gridDim.x; ++x) {
                blockIdx = {x, y, z};
                // What is read before it is written shows.
                std::memset(memory, 0xff, sizeof memory);
                warps.assign((threads + 31) / 32, {0, 0});
                block = first_threads = {0, 0};
                std::fill(barriers, barriers + 16, Group{0, 0});
                std::vector<int> order;
                for (int i = 0; i < threads; ++i) {
                    Fibre& fibre = fibres[i];
                    fibre.threadIdx = {unsigned(i % width), unsigned(i / width), 0};
                    fibre.stack.resize(1 << 18);
                    fibre.done = false;
                    getcontext(&fibre.context);
                    fibre.context.uc_stack.ss_sp = fibre.stack.data();
                    fibre.context.uc_stack.ss_size = fibre.stack.size();
                    fibre.context.uc_link = nullptr;
                    makecontext(&fibre.context, enter, 0);
                    order.push_back(i);
                }
                for (bool left = true; left;) {
                    left = false;
                    // Warps are ahead of one another by chance.
                    random = random * 1664525u + 1013904223u;
                    const int skipped = (random >> 8) % warps.size();
                    for (const int i : order) {
                        if (fibres[i].done) continue;
                        left = true;
                        if (warps.size() > 1 && i / 32 == skipped) continue;
                        running = i;
                        swapcontext(&scheduler, &fibres[i].context);
                    }
                }
            }
}
