// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {Checkpoint} from "src/Checkpoint.sol";
import {PeerRegistry} from "src/PeerRegistry.sol";
import {Verdict} from "src/Verdicts.sol";
import {vm} from "./Vm.sol";
import {World} from "./World.sol";

/// @notice Four peers and a quorum who do, in any order, what the contracts allow, and remember what must hold.
/// @dev Every call here is meant to succeed; what must be refused is tried and counted if it was not.
contract Handler is World {
    uint256 public constant PEERS = 4;
    /// @notice What was done how often, so that a test can see that nothing is left out.
    mapping(string => uint256) public did;
    /// @notice What was allowed and should not have been.
    string[] public wrongs;

    mapping(uint256 peer => uint256[]) private _keys;
    mapping(address key => address) public ownerOf;
    address[] public keys;
    mapping(uint64 epoch => bytes32) public hashOf;
    mapping(uint64 epoch => uint128) public promiseOf;
    mapping(uint64 => uint256) public proposedAt;
    mapping(uint64 epoch => uint256[4]) private _leaves;
    mapping(address account => uint256) public paid;
    uint256[4] private _earned;
    uint256 public claimed;
    uint256 public staked;
    uint256 public slashed;
    uint256 public usage;
    uint256 public burned;
    uint64 public offence = 1_000_000;
    uint64 public headEpoch;
    uint128 public highestActive;

    constructor() {
        _start();
        for (uint256 i = 0; i < PEERS; ++i) _fund(_wallet(i), 100_000e18);
        token.approve(address(pool), type(uint256).max);
    }

    function contracts() external view returns (address, address, address, address, address) {
        return (address(token), address(registry), address(hub), address(pool), address(slashing));
    }

    function wallet(uint256 index) external pure returns (address) {
        return _wallet(index);
    }

    function keyCount() external view returns (uint256) {
        return keys.length;
    }

    function wrongCount() external view returns (uint256) {
        return wrongs.length;
    }

    function wait(uint32 time) external {
        vm.warp(block.timestamp + (time % 8 == 0 ? time % 20 days : time % 20 minutes));
        _seeActive();
    }

    function enrol(uint8 who, uint96 amount) external {
        (uint256 index, address account) = _who(who);
        uint128 stake = uint128(amount % (token.balanceOf(account) / 2 + 1));
        if (_keys[index].length != 0) return;
        uint256 secret = _newKey(index);
        _enrol(account, secret, stake);
        staked += stake;
        ++did["enrol"];
    }

    function addStake(uint8 who, uint96 amount) external {
        (uint256 index, address account) = _who(who);
        uint128 more = uint128(1 + amount % (token.balanceOf(account) / 2 + 1));
        if (_keys[index].length == 0 || _jailed(account) || more > token.balanceOf(account)) return;
        vm.prank(account);
        registry.addStake(more);
        staked += more;
        ++did["addStake"];
    }

    function requestUnbond(uint8 who, uint96 amount) external {
        (, address account) = _who(who);
        (uint128 stake,) = _stake(account);
        if (stake == 0) return;
        vm.prank(account);
        registry.requestUnbond(uint128(1 + amount % stake));
        ++did["requestUnbond"];
    }

    function withdraw(uint8 who) external {
        (, address account) = _who(who);
        (,, uint128 unbonding, uint64 unlockAt,) = registry.peer(account);
        bool due = unbonding != 0 && block.timestamp >= unlockAt;
        uint256 before = token.balanceOf(account);
        vm.prank(account);
        try registry.withdraw() {
            if (!due) wrongs.push("withdrawn too early");
            if (token.balanceOf(account) != before + unbonding) wrongs.push("another sum withdrawn");
            staked -= unbonding;
            ++did["withdraw"];
        } catch {
            if (due) wrongs.push("a withdrawal was refused");
            ++did["withdraw refused"];
        }
    }

    function rotateKey(uint8 who) external {
        (uint256 index, address account) = _who(who);
        if (_keys[index].length == 0 || _keys[index].length > 5 || _jailed(account)) return;
        uint256 secret = _newKey(index);
        (bytes32 x, bytes32 y, bytes32 r, bytes32 vs) = _binding(account, secret);
        vm.prank(account);
        registry.rotateKey(x, y, r, vs);
        ++did["rotateKey"];
    }

    function stealKey(uint8 who, uint8 whose) external {
        (, address account) = _who(who);
        (uint256 other, address victim) = _who(whose);
        if (_keys[other].length == 0 || account == victim) return;
        (bytes32 x, bytes32 y, bytes32 r, bytes32 vs) = _binding(account, _keys[other][0]);
        vm.prank(account);
        try registry.enrol(x, y, r, vs, 0, 0) {
            wrongs.push("a key has two owners");
        } catch {
            ++did["stealKey refused"];
        }
    }

    /// @dev A few checkpoints in a row; each tally adds to what four accounts earned. Some roots say more than they promise.
    function propose(uint8 count, uint64[4] calldata more, bool lies) external {
        for (uint256 i = 0; i <= count % 12; ++i) {
            vm.warp(block.timestamp + MIN_INTERVAL);
            _seeActive();
            Checkpoint memory header = _next();
            if (header.epoch > 1 && header.parent != hashOf[header.epoch - 1]) wrongs.push("the chain of hashes broke");
            uint128 funded = pool.funded(header.epoch);
            uint256 sum = 0;
            for (uint256 j = 0; j < 4; ++j) sum += _earned[j] + more[j];
            if (sum > funded) return;
            for (uint256 j = 0; j < 4; ++j) _earned[j] += more[j];
            _leaves[header.epoch] = _earned;
            header.cumulativeReward = uint128(sum);
            if (lies) {
                _leaves[header.epoch][0] += 1e24;
                ++did["lie"];
            }
            header.tallyRoot = _root(header.epoch);
            _propose(header);
            (hashOf[header.epoch], promiseOf[header.epoch], headEpoch) = (_hash(header), uint128(sum), header.epoch);
            proposedAt[header.epoch] = block.timestamp;
            ++did["propose"];
        }
    }

    function rollback(uint8 back) external {
        (uint64 head,,,) = hub.head();
        uint64 epoch = head + 1 - uint64(back % (head < 10 ? head + 1 : 11)); // the next one, too
        if (hub.isActive(epoch)) return;
        _rollback(epoch);
        headEpoch = epoch - 1;
        // What the rolled-back tallies said is signed again, or never.
        for (uint256 j = 0; j < 4; ++j) {
            _earned[j] = epoch == 1 ? 0 : _truth(epoch - 1, j);
        }
        ++did["rollback"];
    }

    function claim(uint8 which, uint8 back) external {
        (uint64 head,,,) = hub.head();
        if (head == 0) return;
        uint64 epoch = head - uint64(back % head);
        uint256 index = which % 4;
        (address account, uint256 cumulative) = (_account(index), _leaves[epoch][index]);
        bytes32[] memory proof = _proof(epoch, index);
        bool active = hub.isActive(epoch);
        uint256 before = token.totalSupply();
        try pool.claim(epoch, account, cumulative, proof) {
            if (!active) wrongs.push("paid for what is not active");
            if (cumulative <= paid[account]) wrongs.push("paid twice");
            claimed += cumulative - paid[account];
            paid[account] = cumulative;
            ++did[token.totalSupply() > before ? "claim and mint" : "claim"];
        } catch {
            ++did["claim refused"];
        }
    }

    function payUsage(uint64 amount) external {
        if (amount == 0) return;
        uint256 before = token.totalSupply();
        pool.payUsage(0, amount);
        usage += before - token.totalSupply();
        ++did["payUsage"];
    }

    function payAttestors() external {
        if (pool.attestorsDue() < 4) return;
        uint256 before = token.totalSupply();
        pool.payAttestors();
        usage -= token.totalSupply() - before;
        ++did["payAttestors"];
    }

    function equivocate(uint8 who, uint8 key) external {
        (uint256 index, address account) = _who(who);
        if (_keys[index].length == 0) return;
        uint256 secret = _keys[index][key % _keys[index].length];
        if (registry.liable(vm.addr(secret)) == address(0)) return;
        (Checkpoint memory one, Checkpoint memory other, bytes32[4] memory rvs) = _lie(secret, ++offence);
        (uint128 stake, uint128 unbonding) = _stake(account);
        slashing.reportCheckpoints(one, other, rvs);
        _countSlash(account, stake, unbonding);
        ++did["equivocate"];
        try slashing.reportCheckpoints(other, one, [rvs[2], rvs[3], rvs[0], rvs[1]]) {
            wrongs.push("slashed twice");
        } catch {
            ++did["equivocate refused"];
        }
    }

    function judge(uint8 who, uint16 bps) external {
        (uint256 index, address account) = _who(who);
        if (_keys[index].length == 0) return;
        Verdict memory verdict = _verdict(_keys[index][_keys[index].length - 1], ++offence, 1 + bps % 500);
        slashing.proposeVerdict(verdict, 7, _sign(_verdictDigest(verdict), 7));
        vm.warp(block.timestamp + 3 days);
        _seeActive();
        (uint128 stake, uint128 unbonding) = _stake(account);
        (uint64 endsAt, uint16 taken) = slashing.periods(account);
        bool over = block.timestamp < endsAt && taken + verdict.bps > 500;
        try slashing.executeVerdict(verdict) {
            if (over) wrongs.push("verdicts over the cap");
            _countSlash(account, stake, unbonding);
            ++did["judge"];
        } catch {
            if (!over) wrongs.push("a verdict was refused");
            ++did["judge refused"];
        }
    }

    function burn() external {
        uint256 amount = registry.burnable();
        if (amount == 0) return;
        registry.burn();
        burned += amount;
        ++did["burn"];
    }

    function _countSlash(address account, uint128 stake, uint128 unbonding) private {
        (uint128 stakeLeft, uint128 unbondingLeft) = _stake(account);
        if (stakeLeft > stake || unbondingLeft > unbonding) wrongs.push("a slash gave");
        uint256 taken = stake + unbonding - stakeLeft - unbondingLeft;
        staked -= taken;
        slashed += taken;
    }

    /// @dev Highest promise that was ever active.
    function _seeActive() private {
        for (uint64 epoch = headEpoch; epoch > 0 && epoch + 64 > headEpoch; --epoch) {
            if (hub.isActive(epoch)) {
                if (promiseOf[epoch] > highestActive) highestActive = promiseOf[epoch];
                return;
            }
        }
    }

    function _newKey(uint256 index) private returns (uint256 secret) {
        secret = 1_000_000 * (index + 1) + _keys[index].length;
        _keys[index].push(secret);
        keys.push(vm.addr(secret));
        ownerOf[vm.addr(secret)] = _wallet(index);
    }

    function _truth(uint64 epoch, uint256 index) private view returns (uint256) {
        uint256 leaf = _leaves[epoch][index];
        return leaf >= 1e24 ? leaf - 1e24 : leaf;
    }

    function _account(uint256 index) private pure returns (address) {
        return vm.addr(1_000_000 * (index + 1));
    }

    function _root(uint64 epoch) private view returns (bytes32) {
        return _pair(_pair(_leafOf(epoch, 0), _leafOf(epoch, 1)), _pair(_leafOf(epoch, 2), _leafOf(epoch, 3)));
    }

    function _proof(uint64 epoch, uint256 index) private view returns (bytes32[] memory proof) {
        proof = new bytes32[](2);
        uint256 other = index < 2 ? 2 : 0;
        (proof[0], proof[1]) = (_leafOf(epoch, index ^ 1), _pair(_leafOf(epoch, other), _leafOf(epoch, other + 1)));
    }

    function _leafOf(uint64 epoch, uint256 index) private view returns (bytes32) {
        return _leaf(_account(index), _leaves[epoch][index]);
    }

    function _jailed(address account) private view returns (bool jailed) {
        (,,,, jailed) = registry.peer(account);
    }

    function _who(uint8 who) private pure returns (uint256 index, address account) {
        index = who % PEERS;
        account = _wallet(index);
    }

    function _wallet(uint256 index) private pure returns (address) {
        return address(uint160(0xBEEF00 + index));
    }
}
