#include "ps3/budget.h"

#include <algorithm>
#include <new>
#include <numeric>

#include "fail.h"

namespace ps3 {

namespace {

Status no_memory(const char* where) {
  return ops::fail(Code::kOutOfMemory, "[%s] no memory for the plan. Free memory or ask for fewer looks.", where);
}

Status check_request(Span<const int> capacity, Span<const int> per_look, const LookRequest& request) {
  if (capacity.empty() || capacity.size() != per_look.size()) {
    return ops::fail(Code::kInvalidArgument, "[plan_looks] %zu capacities and %zu per-look counts; needs one each per high-res scale. Pass both lists.",
                     capacity.size(), per_look.size());
  }
  for (std::size_t i = 0; i < capacity.size(); ++i) {
    if (capacity[i] < 0 || per_look[i] < 0) {
      return ops::fail(Code::kInvalidArgument, "[plan_looks] scale %zu has capacity %d and per-look count %d; needs 0 or more. Pass counts of patches.",
                       i + 1, capacity[i], per_look[i]);
    }
  }
  const int given = (request.num_looks != -1) + (request.num_tokens != -1) + (request.all ? 1 : 0);
  if (given != 1) {
    return ops::fail(Code::kInvalidArgument, "[plan_looks] %d of num_looks, num_tokens and all are given; needs exactly one. Pass one.", given);
  }
  if (request.num_looks < -1 || request.num_tokens < -1) {
    return ops::fail(Code::kInvalidArgument, "[plan_looks] %s is %d; needs 0 or more. 0 means low-res only.",
                     request.num_looks < -1 ? "num_looks" : "num_tokens", request.num_looks < -1 ? request.num_looks : request.num_tokens);
  }
  if (request.first_scales < 0 || request.first_scales > static_cast<int>(capacity.size())) {
    return ops::fail(Code::kInvalidArgument, "[plan_looks] first_scales is %d; the model has %zu high-res scales. Pass 1..%zu, or 0 for all.",
                     request.first_scales, capacity.size(), capacity.size());
  }
  if (std::accumulate(per_look.begin(), per_look.end(), 0L) == 0) {
    return ops::fail(Code::kInvalidArgument, "[plan_looks] per_look sums to 0; a look needs at least one patch. Raise max_select_num.");
  }
  return {};
}

/// What a look aims at, before it is known what is free. tokens: -1 for a full look.
std::vector<long> aim(Span<const int> full, long tokens, int first_scales) {
  const long full_sum = std::accumulate(full.begin(), full.end(), 0L);
  std::vector<long> counts(full.begin(), full.end());
  if (tokens >= 0) {
    for (long& count : counts) count = static_cast<long>(static_cast<double>(count * tokens) / static_cast<double>(full_sum));
  }
  if (first_scales > 0) {
    const long sum = std::accumulate(counts.begin(), counts.end(), 0L);
    const long sum_first = std::accumulate(counts.begin(), counts.begin() + first_scales, 0L);
    for (int i = 0; i < static_cast<int>(counts.size()); ++i) {
      if (i >= first_scales) {
        counts[i] = 1;
      } else if (sum_first > 0) {
        counts[i] = static_cast<long>(static_cast<double>(counts[i]) / static_cast<double>(sum_first) * static_cast<double>(sum));
      }
    }
    counts.back() = std::max(0L, counts.back() + full_sum - std::accumulate(counts.begin(), counts.end(), 0L));
  }
  return counts;
}

}  // namespace

Status per_look(Span<const int> scales_px, int max_select_num, std::vector<int>& counts) noexcept {
  if (scales_px.size() < 2 || max_select_num < 0) {
    return ops::fail(Code::kInvalidArgument, "[per_look] %zu scales and max_select_num %d; needs the low-res scale, at least one more, and 0 or more. Pass the model's.",
                     scales_px.size(), max_select_num);
  }
  long long sum = 0;
  for (std::size_t i = 0; i < scales_px.size(); ++i) {
    const bool ascending = i == 0 || scales_px[i] > scales_px[i - 1];
    if (scales_px[i] < 1 || scales_px[i] > 65536 || !ascending) {
      return ops::fail(Code::kInvalidArgument, "[per_look] scale %zu is %d px; needs 1..65536, ascending. Pass the model's scales.", i, scales_px[i]);
    }
    if (i > 0) sum += static_cast<long long>(scales_px[i]) * scales_px[i];
  }
  try {
    counts.clear();
    for (std::size_t i = 1; i < scales_px.size(); ++i) {
      const long long area = static_cast<long long>(scales_px[i]) * scales_px[i];
      counts.push_back(static_cast<int>(static_cast<double>(max_select_num * area) / static_cast<double>(sum)));
    }
    return {};
  } catch (...) {
    return no_memory("per_look");
  }
}

Status plan_looks(Span<const int> capacity, Span<const int> per_look, const LookRequest& request,
                  std::vector<std::vector<int>>& looks) noexcept {
  Status status = check_request(capacity, per_look, request);
  if (!status.ok()) return status;
  try {
    looks.clear();
    const int num_scales = static_cast<int>(capacity.size());
    const int considered = request.first_scales > 0 ? request.first_scales : num_scales;
    const long full = std::accumulate(per_look.begin(), per_look.end(), 0L);
    const long available = std::accumulate(capacity.begin(), capacity.begin() + considered, 0L);
    const auto looks_for = [&](long tokens) { return (tokens + full - 1) / full; };

    long num_looks = looks_for(available), last_tokens = -1;
    if (request.num_looks >= 0) num_looks = std::min<long>(request.num_looks, num_looks);
    if (request.num_tokens >= 0) {
      const long tokens = std::min<long>(request.num_tokens, available);
      num_looks = looks_for(tokens);
      last_tokens = tokens % full == 0 ? full : tokens % full;
    }
    std::vector<long> left(capacity.begin(), capacity.end());
    for (long look = 0; look < num_looks; ++look) {
      std::vector<long> counts = aim(per_look, look == num_looks - 1 ? last_tokens : -1, request.first_scales);
      std::vector<int> row(static_cast<std::size_t>(num_scales));
      for (int i = 0; i < num_scales; ++i) {
        if (left[i] < counts[i]) {
          if (i + 1 < num_scales) counts[i + 1] += counts[i] - left[i];
          counts[i] = left[i];
        }
        left[i] -= counts[i];
        row[i] = static_cast<int>(counts[i]);
      }
      if (std::accumulate(row.begin(), row.end(), 0L) > 0) looks.push_back(std::move(row));
    }
    return {};
  } catch (...) {
    return no_memory("plan_looks");
  }
}

}  // namespace ps3
