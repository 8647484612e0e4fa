#include "search.hpp"

#include <algorithm>
#include <tuple>
#include <utility>

namespace ivdtool {

void Ranking::add(Labelling labelling) {
  const auto precedes = [](const Labelling& a, const Labelling& b) {
    return std::tie(a.cost, a.choice) < std::tie(b.cost, b.choice);
  };
  const auto place = std::lower_bound(best_.begin(), best_.end(), labelling, precedes);
  if (place != best_.end() && place->choice == labelling.choice) return;
  best_.insert(place, std::move(labelling));
  if (best_.size() > size_) best_.pop_back();
}

}  // namespace ivdtool
